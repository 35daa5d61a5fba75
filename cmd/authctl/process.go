package main

import (
	"bytes"
	_ "embed"
	"regexp"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/swagger"
	"github.com/swaggo/swag"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/telemetry"
)

// The OpenAPI document, generated from the comments on the handlers. A test fails when it is
// out of date, and writes it anew with: go test ./cmd/authctl -run OpenAPI -update
//
//go:embed openapi/swagger.json
var openAPI string

//	@title						authctl
//	@version					1
//	@description				Accounts, device sessions and signed tokens. Errors are RFC 9457 problem+json with a stable `code`; docs/errors.md explains each.
//	@license.name				Apache-2.0
//	@BasePath					/
//	@securityDefinitions.apikey	Bearer
//	@in							header
//	@name						Authorization
//	@description				An access token: `Bearer eyJ…`
//	@securityDefinitions.basic	Client

// document is the OpenAPI document under the interface by which the Swagger UI finds it.
type document string

func (d document) ReadDoc() string { return string(d) }

// processRoutes are those of the process rather than of a module.
func processRoutes(server *httpserver.Server, readiness *telemetry.Readiness) []httpserver.Route {
	const instance = "authctl"
	if swag.GetSwagger(instance) == nil { // it refuses to be told twice
		swag.Register(instance, document(openAPI))
	}
	return []httpserver.Route{
		{Method: fiber.MethodGet, Path: "/healthz", Handler: healthz, Quiet: true},
		{Method: fiber.MethodGet, Path: "/readyz", Handler: readyz(server, readiness), Quiet: true},
		{Method: fiber.MethodGet, Path: "/docs/swagger/*", Page: true, Handler: swaggerUI(swagger.New(swagger.Config{
			InstanceName: instance, Title: "authctl", URL: "doc.json", PersistAuthorization: true, TryItOutEnabled: true,
		}))},
	}
}

// foreignStyle is the link to the fonts of another host in the page of the Swagger UI.
var foreignStyle = regexp.MustCompile(`\s*<link href="https://[^>]*>`)

// swaggerUI takes out of the page what it loads from elsewhere: nobody needs to know who
// reads these documents, and the page's own policy would refuse it with an error. Its
// redirect becomes relative, so that it leads to the page behind a path prefix as well.
func swaggerUI(page fiber.Handler) fiber.Handler {
	return func(c *fiber.Ctx) error {
		if err := page(c); err != nil {
			return err
		}
		if c.Response().StatusCode() == fiber.StatusMovedPermanently {
			c.Set(fiber.HeaderLocation, "./index.html")
			return nil
		}
		if !bytes.HasPrefix(c.Response().Header.ContentType(), []byte("text/html")) {
			return nil
		}
		return c.Send(foreignStyle.ReplaceAll(c.Response().Body(), nil))
	}
}

// errNotReady is what /readyz says when it does not say ok.
var errNotReady = fault.New(fault.Unavailable, "not_ready", "The process cannot do its work right now")

// statusBody is the answer of the probes.
type statusBody struct {
	Status string `json:"status" example:"ok"`
}

// healthz godoc
//
//	@Summary	Does the process answer
//	@Tags		probes
//	@Produce	json
//	@Success	200	{object}	statusBody
//	@Router		/healthz [get]
func healthz(c *fiber.Ctx) error { return c.JSON(statusBody{Status: "ok"}) }

// readyz godoc
//
//	@Summary		Can the process do its work
//	@Description	503 when the database or the session store is away, or the process is stopping. Kafka being away never fails it: events wait.
//	@Tags			probes
//	@Produce		json,application/problem+json
//	@Success		200	{object}	statusBody
//	@Failure		503	{object}	httpserver.problem	"not_ready; the detail says what is away"
//	@Router			/readyz [get]
func readyz(server *httpserver.Server, readiness *telemetry.Readiness) fiber.Handler {
	return func(c *fiber.Ctx) error {
		if server.Stopping() {
			return errNotReady.Detail("The process is stopping.")
		}
		results, ready := readiness.Report(c.UserContext())
		if ready {
			return c.JSON(statusBody{Status: "ok"})
		}
		var away []string
		for _, check := range results {
			if check.Critical && check.Err != nil {
				away = append(away, check.Name)
			}
		}
		return errNotReady.Detail("Away: " + strings.Join(away, ", ") + ".")
	}
}
