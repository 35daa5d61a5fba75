package authhttp

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/toppira/authctl/docs/schemas"
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// schemaCache lets a schema be kept for long. Within a version of a type it only gains members, so a former one still
// accepts the data.
const schemaCache = "public, max-age=86400, immutable"

// EventSchema is a JSON Schema (2020-12).
type EventSchema map[string]any

// Example is for the OpenAPI document.
func (EventSchema) Example() (example map[string]any, err error) {
	for _, schema := range schemas.All() {
		if schema.Type == auth.EventUserLoggedIn {
			err = json.Unmarshal(schema.Text, &example)
		}
	}
	return example, err
}

type schemaInput struct {
	File        string `path:"file" pattern:"^[A-Za-z]+\\.[A-Za-z]+\\.v[0-9]+\\.json$" example:"auth.UserLoggedIn.v1.json" doc:"The type of the event, and .json."`
	IfNoneMatch string `header:"If-None-Match" example:"\"0123456789abcdef\"" doc:"The ETag of the schema that the client has."`
}

type schemaOutput struct {
	Status int    `status:"304" doc:"The schema has not changed."`
	ETag   string `header:"ETag" example:"\"0123456789abcdef\"" doc:"Changes with the schema."`
	Body   httpserver.Encoded[EventSchema]
}

func (a *api) schema(_ context.Context, in schemaInput) (schemaOutput, error) {
	eventType, isJSON := strings.CutSuffix(in.File, ".json")
	for _, schema := range schemas.All() {
		if !isJSON || schema.Type != eventType {
			continue
		}
		answer := schemaOutput{ETag: schema.ETag, Body: schema.Text}
		if httpserver.MatchesETag(in.IfNoneMatch, schema.ETag) {
			answer.Status = http.StatusNotModified
		}
		return answer, nil
	}
	return schemaOutput{}, httpserver.ErrNotFound.Detail("There is no type of event of this name.")
}
