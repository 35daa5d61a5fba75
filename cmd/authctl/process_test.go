package main

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/telemetry"
)

func TestThePageOfTheAPILoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	server, err := httpserver.New(httpserver.Config{}, httpserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server.Handle(processRoutes(server, telemetry.NewReadiness(nil))...)
	answer, err := server.App().Test(httptest.NewRequest("GET", "/docs/swagger/index.html", nil), -1)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != 200 || !strings.Contains(string(page), "swagger-ui-bundle.js") {
		t.Fatalf("%d %s", answer.StatusCode, page)
	}
	for _, attribute := range []string{`href="http`, `src="http`, `href="//`, `src="//`} {
		if strings.Contains(string(page), attribute) {
			t.Errorf("the page has %s", attribute)
		}
	}
}
