package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
)

func newToken(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:     "token",
		Short:   "Inspect tokens",
		Example: "  pbpaste | authctl token inspect",
	}, newTokenInspect(g))
}

type inspectOptions struct {
	*global
	jwks     string
	jws      bool
	issuer   string
	audience string
	verifier asVerifier
}

func newTokenInspect(g *global) *cobra.Command {
	o := &inspectOptions{global: g}
	cmd := &cobra.Command{
		Use:   "inspect [TOKEN|-]",
		Short: "Show the content of a token and whether it is valid",
		Long: `Show the content of a token and whether it is valid: header, claims with readable times, and
one verdict. The exit code is 0 only when the verdict is valid.

Keys come from --jwks, a file or the URL of a JWK set. Otherwise they come from the database of the
settings, and the verdict also considers whether the session has ended. Refresh tokens
(art_…) need the database. Use standard input rather than an argument, which others on the machine
can see.

--as-verifier URL verifies the token as another service would: it fetches the metadata of the
issuer, its keys and, with --client, what has ended. If URL is not the issuer but one of its
servers, name the issuer with --issuer. The secret of the client comes from --client-secret-file or
AUTHCTL_CLIENT_SECRET.`,
		Example: `  authctl token inspect - <token.txt
  authctl token inspect --jwks http://localhost:8080/.well-known/jwks.json - <token.txt
  authctl token inspect --jws --jwks keys.json - <message.jws
  authctl token inspect --as-verifier https://auth.example.com --client orders --client-secret-file secret - <token.txt`,
		Args: oneArgumentOrNone,
		RunE: func(cmd *cobra.Command, args []string) error {
			text := "-"
			if len(args) == 1 {
				text = args[0]
			}
			return o.run(cmd, text)
		},
	}
	cmd.Flags().StringVar(&o.jwks, "jwks", "", "JWK set to verify with: a file or an http(s) URL")
	cmd.Flags().BoolVar(&o.jws, "jws", false,
		"verify a bare JWS: only its signature, without rules about claims; needs --jwks")
	cmd.Flags().StringVar(&o.issuer, "issuer", "",
		"with --jwks or --as-verifier: the issuer that the token must have, which URL may be only one server of")
	cmd.Flags().StringVar(&o.audience, "audience", "",
		"with --jwks or --as-verifier: the audience that the token must have")
	cmd.Flags().StringVar(&o.verifier.url, "as-verifier", "", "URL of an issuer: what a verifier elsewhere says")
	cmd.Flags().StringVar(&o.verifier.client, "client", "", "with --as-verifier: the id of a client of auth.clients")
	cmd.Flags().StringVar(&o.verifier.secretFile, "client-secret-file", "", "with --client: a file with its secret")
	cmd.MarkFlagsMutuallyExclusive("as-verifier", "jwks")
	return cmd
}

func (o *inspectOptions) run(cmd *cobra.Command, text string) error {
	if o.jws && o.jwks == "" {
		return misuse{errors.New("--jws needs --jwks")}
	}
	if o.verifier.url == "" && (o.jwks == "" || o.jws) && (o.issuer != "" || o.audience != "") {
		return misuse{errors.New("--issuer and --audience go with --as-verifier, or with --jwks and without --jws")}
	}
	if o.verifier.url == "" && (o.verifier.client != "" || o.verifier.secretFile != "") {
		return misuse{errors.New("--client and --client-secret-file go with --as-verifier")}
	}
	for flag, value := range map[string]string{"--jwks": o.jwks, "--as-verifier": o.verifier.url} {
		if strings.Contains(value, "://") && strings.Contains(value, "@") { // errors show the URL
			return misuse{errors.New(flag + " has an @: leave the user and password out of the URL, since others on " +
				"the machine can see it, and what is there is public")}
		}
	}
	if text == "-" {
		line, err := bufio.NewReaderSize(io.LimitReader(cmd.InOrStdin(), 64<<10), 64<<10).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the token: %w", err)
		}
		text = line
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return misuse{errors.New("there is no token")}
	}
	report, err := o.inspect(cmd, text)
	if err != nil && report.Verdict == "" {
		return err
	}
	if err := errors.Join(o.print(cmd.OutOrStdout(), report), err); err != nil {
		return err
	}
	if !report.Valid {
		return silent{errors.New(report.Verdict)}
	}
	return nil
}

func (o *inspectOptions) inspect(cmd *cobra.Command, text string) (auth.TokenReport, error) {
	if o.verifier.url != "" {
		o.verifier.issuer, o.verifier.audience = o.issuer, o.audience
		return o.verifier.inspect(cmd.Context(), text)
	}
	if o.jwks != "" {
		data, err := readKeySet(cmd.Context(), o.jwks)
		if err != nil {
			return auth.TokenReport{}, err
		}
		keys, err := auth.ParseKeySet(data)
		if err != nil {
			return auth.TokenReport{}, fmt.Errorf("the JWK set %s: %w", o.jwks, err)
		}
		if o.jws {
			return auth.InspectJWS(text, keys), nil
		}
		return auth.InspectToken(text, keys, auth.Expectation{Issuer: o.issuer, Audience: o.audience}, time.Now()), nil
	}
	s, err := o.load(settings{}, nil)
	if err != nil {
		return auth.TokenReport{}, err
	}
	if !s.Database.Exists(s.App.DataDir) { // inspecting must not create an installation
		return auth.DecodeToken(text), nil
	}
	var report auth.TokenReport
	err = o.withApp(cmd, (*app).openExistingAuth, func(ctx context.Context, a *app) (err error) {
		report, err = a.auth.InspectToken(ctx, text)
		return err
	})
	if errors.Is(err, fs.ErrPermission) { // the keys are not at hand for this user
		return auth.DecodeToken(text), nil
	}
	if err != nil && !auth.IsRefreshToken(text) { // what it says can be shown without them
		report = auth.DecodeToken(text)
	}
	return report, err
}

// maxKeySet bounds a JWK set.
const maxKeySet = 256 << 10

// readKeySet reads a JWK set from a file or a URL, with limits on size and time.
func readKeySet(ctx context.Context, from string) ([]byte, error) {
	if strings.HasPrefix(from, "http://") || strings.HasPrefix(from, "https://") {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		data, err := fetchBody(ctx, from, "", "", maxKeySet)
		if err != nil {
			return nil, fmt.Errorf("fetch the JWK set: %w", err)
		}
		return data, nil
	}
	in, err := os.Open(from)
	if err != nil {
		return nil, fmt.Errorf("read the JWK set: %w", err)
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, maxKeySet+1))
	if err != nil {
		return nil, fmt.Errorf("read the JWK set: %w", err)
	}
	if len(data) > maxKeySet {
		return nil, fmt.Errorf("read the JWK set: %s is larger than %d KiB", from, maxKeySet>>10)
	}
	return data, nil
}

func (o *inspectOptions) print(w io.Writer, r auth.TokenReport) error {
	if o.output == "json" {
		return printJSON(w, r)
	}
	var rows [][]string
	section := func(name string, values map[string]any) {
		for i, key := range slices.Sorted(maps.Keys(values)) {
			head := ""
			if i == 0 {
				head = name
			}
			rows = append(rows, []string{head, key, show(r, name, key, values[key])})
		}
	}
	section("header", r.Header)
	section("claims", r.Claims)
	if err := printPairs(w, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "verdict: %s\n", r.Verdict)
	return err
}

// show formats a value on one line, and times for people too. Anybody can make a token, so nothing
// in it may move the cursor or break the line.
func show(r auth.TokenReport, section, key string, value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return "?"
	}
	plain := func(s string) bool {
		return strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) < 0
	}
	shown := string(text)
	var word string
	switch {
	case json.Unmarshal(text, &word) == nil && plain(word):
		shown = word
	case !plain(shown):
		shown = strconv.QuoteToASCII(shown)
	}
	if section == "claims" && slices.Contains([]string{"exp", "iat", "nbf", "auth_time"}, key) {
		if at, ok := r.Time(key); ok {
			shown += "  " + at.Format(time.RFC3339) + " (" + relative(time.Until(at)) + ")"
		}
	}
	return shown
}
