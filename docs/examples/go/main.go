// Command client registers, refreshes, lists the sessions and reads a refusal. The client in
// authctl.gen.go is made of the OpenAPI document: go generate.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

//go:generate go tool oapi-codegen -config oapi-codegen.yaml ../../../cmd/authctl/openapi/openapi.json

func main() {
	if err := run(context.Background(), cmp.Or(os.Getenv("AUTHCTL_URL"), "http://localhost:8080")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, base string) error {
	api, err := NewClientWithResponses(base)
	if err != nil {
		return err
	}
	name, password, device := fmt.Sprintf("go-%d", time.Now().UnixNano()), "correct horse battery staple", "example"
	registered, err := api.RegisterWithResponse(ctx, nil,
		RegisterRequest{Username: name, Password: password, DeviceName: &device})
	if err != nil {
		return err
	}
	if registered.JSON201 == nil {
		return fmt.Errorf("register: %s %s", registered.Status(), registered.Body)
	}
	refreshed, err := api.RefreshWithResponse(ctx, RefreshRequest{RefreshToken: registered.JSON201.RefreshToken})
	if err != nil {
		return err
	}
	if refreshed.JSON200 == nil {
		return fmt.Errorf("refresh: %s %s", refreshed.Status(), refreshed.Body)
	}

	listed, err := api.ListSessionsWithResponse(ctx, func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+refreshed.JSON200.AccessToken)
		return nil
	})
	if err != nil {
		return err
	}
	if listed.JSON200 == nil {
		return fmt.Errorf("list sessions: %s %s", listed.Status(), listed.Body)
	}
	for _, session := range listed.JSON200.Sessions {
		fmt.Println("signed in:", session.DeviceName, session.LastUsedAt.Format(time.RFC3339), session.Current)
	}

	refused, err := api.LoginWithResponse(ctx, nil, LoginRequest{Username: name, Password: "wrong"})
	if err != nil {
		return err
	}
	if problem := refused.ApplicationproblemJSON401; problem != nil {
		fmt.Println("refused:", problem.Status, problem.Code, problem.Title)
	}
	return nil
}
