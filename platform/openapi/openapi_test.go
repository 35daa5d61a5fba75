package openapi_test

import (
	"context"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/openapi"
)

type nothing struct{}

// A declaration that cannot be described is an error that says which one it is, and what it lacks.
func TestADeclarationThatLacksSomethingIsSaid(t *testing.T) {
	t.Parallel()
	for want, do := range map[string]httpserver.Function{
		"interface {} has no schema": httpserver.Public(func(context.Context, nothing) (any, error) { return nil, nil }),
		"[]string has no example":    httpserver.Public(func(context.Context, nothing) ([]string, error) { return nil, nil }),
		"Name has no example": httpserver.Public(func(context.Context, nothing) (struct {
			Name string `json:"name"`
		}, error) {
			panic("not called")
		}),
	} {
		_, err := openapi.Document(openapi.Info{Title: "t", Version: "1"}, []httpserver.Route{{Method: "GET", Path: "/x",
			ID: "x", Group: "g", Summary: "s", Success: "s", Do: do}})
		if err == nil || !strings.Contains(err.Error(), "GET /x: "+want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}
