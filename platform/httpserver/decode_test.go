package httpserver_test

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
)

func TestABodyIsExactlyOneStrictJSONObject(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		deep := func(n int) string {
			return `{"tags":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
		}
		for name, test := range map[string]struct {
			body   string
			status int
			code   string
			field  string // of validation_failed
		}{
			"good":                  {body: `{"name":"x","count":1,"tags":["a"]}`, status: 200},
			"white space around":    {body: " \r\n\t{\"name\" : \"x\"}\n ", status: 200},
			"escapes":               {body: `{"name":"\u00e9\ud83d\ude00"}`, status: 200},
			"escaped name":          {body: `{"n\u0061me":"x"}`, status: 200},
			"brackets in a string":  {body: `{"name":"` + strings.Repeat(`[{\"`, 40) + `"}`, status: 200},
			"empty object":          {body: `{}`, status: 200},
			"empty body":            {body: ``, status: 400, code: "malformed_request"},
			"white space only":      {body: " \n", status: 400, code: "malformed_request"},
			"null":                  {body: `null`, status: 400, code: "malformed_request"},
			"array":                 {body: `[{"name":"x"}]`, status: 400, code: "malformed_request"},
			"scalar":                {body: `"name"`, status: 400, code: "malformed_request"},
			"two objects":           {body: `{"name":"x"}{"name":"y"}`, status: 400, code: "malformed_request"},
			"something after":       {body: `{"name":"x"} garbage`, status: 400, code: "malformed_request"},
			"wrong and garbage":     {body: `{"name":1} garbage`, status: 400, code: "malformed_request"},
			"cut off":               {body: `{"name":"x"`, status: 400, code: "malformed_request"},
			"byte order mark":       {body: "\ufeff{\"name\":\"x\"}", status: 400, code: "malformed_request"},
			"UTF-16":                {body: "{\x00\"\x00a\x00", status: 400, code: "malformed_request"},
			"invalid UTF-8":         {body: "{\"name\":\"\xff\"}", status: 400, code: "malformed_request"},
			"overlong UTF-8":        {body: "{\"name\":\"\xc0\xaf\"}", status: 400, code: "malformed_request"},
			"lone surrogate":        {body: `{"name":"\ud800"}`, status: 400, code: "malformed_request"},
			"NUL":                   {body: "{\"name\":\"\x00\"}", status: 400, code: "malformed_request"},
			"single quotes":         {body: `{'name':'x'}`, status: 400, code: "malformed_request"},
			"comment":               {body: `{"name":"x"/**/}`, status: 400, code: "malformed_request"},
			"trailing comma":        {body: `{"name":"x",}`, status: 400, code: "malformed_request"},
			"NaN":                   {body: `{"count":NaN}`, status: 400, code: "malformed_request"},
			"duplicate":             {body: `{"name":"x","name":"y"}`, status: 400, code: "malformed_request"},
			"duplicate by escape":   {body: `{"name":"x","n\u0061me":"y"}`, status: 400, code: "malformed_request"},
			"wrong, then duplicate": {body: `{"name":1,"name":"y"}`, status: 400, code: "malformed_request"},
			"unknown":               {body: `{"name":"x","admin":true}`, status: 400, code: "malformed_request"},
			"other case":            {body: `{"Name":"x"}`, status: 400, code: "malformed_request"},
			"prototype":             {body: `{"__proto__":{}}`, status: 400, code: "malformed_request"},
			"sixteen deep":          {body: deep(16), status: 400, code: "validation_failed", field: "tags.0"},
			"seventeen deep":        {body: deep(17), status: 400, code: "malformed_request"},
			"thousands deep":        {body: deep(8000), status: 400, code: "malformed_request"},
			"number for string":     {body: `{"name":1}`, status: 400, code: "validation_failed", field: "name"},
			"null for string":       {body: `{"name":null}`, status: 400, code: "validation_failed", field: "name"},
			"null for array":        {body: `{"tags":null}`, status: 400, code: "validation_failed", field: "tags"},
			"null in array": {body: `{"tags":["a",null]}`, status: 400, code: "validation_failed",
				field: "tags.1"},
			"the word null":        {body: `{"name":"null"}`, status: 200},
			"object for string":    {body: `{"name":{}}`, status: 400, code: "validation_failed", field: "name"},
			"string for number":    {body: `{"count":"1"}`, status: 400, code: "validation_failed", field: "count"},
			"fraction for integer": {body: `{"count":1.5}`, status: 400, code: "validation_failed", field: "count"},
			"number beyond an int64": {body: `{"count":9223372036854775808}`, status: 400, code: "validation_failed",
				field: "count"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				a := s.do(t, "POST", "/echo", test.body, "Content-Type", "application/json")
				if test.code == "" {
					if a.StatusCode != test.status {
						t.Errorf("%d %s", a.StatusCode, a.body)
					}
					return
				}
				p := a.problem(t, test.status, test.code)
				if test.field == "" && len(p.Errors) == 0 {
					return
				}
				if len(p.Errors) != 1 || p.Errors[0].Field != test.field || p.Errors[0].Code != "wrong_type" ||
					p.Errors[0].Detail == "" {
					t.Errorf("errors %+v, want field %q", p.Errors, test.field)
				}
			})
		}
	})
}

func TestOnlyPlainJSONIsTaken(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		for media, words := range map[string]string{ // part of the refusal; empty where there must be none
			"application/json":                                 "",
			"Application/JSON":                                 "",
			"application/json; charset=utf-8":                  "",
			"application/json;charset=\"UTF-8\"":               "",
			"application/json; charset=utf8":                   "",
			"application/json;charset=UTF8":                    "",
			"application/json; charset='utf-8'":                "",
			"application/json ; Charset = utf_8 ":              "",
			"application/json; charset=unicode-1-1-utf-8":      "",
			"application/json; charset=csUTF8":                 "",
			"application/json;":                                "",
			"application/json; ;":                              "",
			"application/json; x=1":                            "",
			"application/json; charset=utf-8; x=1":             "",
			"application/json; x=\"a;charset=latin1\"":         "",
			"application/json; profile=\"a\"; charset=utf-8":   "",
			"application/json; charset=utf-8; charset=UTF-8":   "",
			"application/json; boundary=x":                     "",
			"application/json; odata.metadata=minimal; flag":   "",
			"application/json; charset=latin1":                 "The charset must be UTF-8, not \"latin1\".",
			"application/json; charset=\"iso-8859-1\"":         "not \"iso-8859-1\"",
			"application/json; flag; charset=utf-16":           "not \"utf-16\"",
			"application/json; charset=utf-8x":                 "not \"utf-8x\"",
			"application/json; charset=us-ascii":               "not \"us-ascii\"",
			"application/json; charset=":                       "not \"\"",
			"application/json; charset=utf-8; charset=latin1":  "not \"latin1\"",
			"application/json; charset=utf-8; charset=":        "not \"\"",
			"application/json, application/json":               "not \"application/json, application/json\"",
			"application/problem+json":                         "Content-Type must be application/json, not \"application/problem+json\".",
			"application/vnd.api+json":                         "application/vnd.api+json",
			"application/jsonp":                                "application/jsonp",
			"text/json":                                        "text/json",
			"text/plain; charset=utf-8":                        "not \"text/plain\"",
			"application/x-www-form-urlencoded":                "not \"application/x-www-form-urlencoded\"",
			"multipart/form-data; boundary=x":                  "not \"multipart/form-data\"",
			"":                                                 "Content-Type is missing; it must be application/json.",
			"; charset=utf-8":                                  "Content-Type is missing",
			strings.Repeat("x", 2000) + "\xff/" + "\u2028json": "Content-Type must be application/json",
		} {
			a := s.do(t, "POST", "/echo", `{"name":"x"}`, "Content-Type", media)
			if words == "" {
				if a.StatusCode != 200 {
					t.Errorf("%q: %d %s", media, a.StatusCode, a.body)
				}
				continue
			}
			if p := a.problem(t, 415, "unsupported_media_type"); !strings.Contains(p.Detail, words) ||
				len(p.Detail) > 300 {
				t.Errorf("%q: %q, want %q", media, p.Detail, words)
			}
		}
	})
}

// A refusal of a body says what is wrong.
func TestARefusedBodyIsToldWhatIsWrong(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		for body, words := range map[string]string{
			"":                              "The body is empty",
			" \r\n":                         "The body is empty",
			"\ufeff{\"name\":\"x\"}":        "byte order mark",
			" \ufeff{}":                     "byte order mark",
			"\xff\xfe{\x00}\x00":            "UTF-16",
			"\xfe\xff\x00{\x00}":            "UTF-16",
			"{\x00\"\x00a\x00":              "UTF-16",
			"\x00{\x00}":                    "UTF-16",
			"{\"name\":\"\xe9\"}":           "not valid UTF-8",
			`{"name":"x"} {}`:               "goes on after its JSON object",
			`{"name":1} garbage`:            "goes on after its JSON object",
			`{'name':'x'}`:                  "not valid JSON at byte 1",
			`{"name":"x",}`:                 "not valid JSON at byte 11",
			`{"name":"x"`:                   "not valid JSON at byte 11",
			`"name=x"`:                      "must be a JSON object",
			`name=x&count=1`:                "must be a JSON object",
			`{"nam":"x"}`:                   "not known here: nam",
			`{"name":"x","name":"y"}`:       "twice: name",
			"{\"name\":\"" + "a\tb" + "\"}": "not valid JSON at byte",
			`{"name":"a\ud800b"}`:           "at byte 10: an escaped surrogate lacks its other half",
			`{"name":"\UD800"}`:             "not valid JSON at byte",
			`{"name":"\uDC00\ud800"}`:       "an escaped surrogate lacks its other half",
		} {
			for _, media := range []string{"application/json", ""} {
				if media == "" && body != "" {
					continue // then the media type is wrong
				}
				a := s.do(t, "POST", "/echo", body, "Content-Type", media)
				if p := a.problem(t, 400, "malformed_request"); !strings.Contains(p.Detail, words) {
					t.Errorf("%q: %q, want %q", body, p.Detail, words)
				}
			}
		}
		if p := s.do(t, "GET", "/plain/", "").problem(t, 404,
			"not_found"); !strings.Contains(p.Detail, "slash at its end") {
			t.Errorf("a trailing slash: %q", p.Detail)
		}
		if p := s.do(t, "PUT", "/echo", "").problem(t, 405, "method_not_allowed"); !strings.Contains(p.Detail, "POST") {
			t.Errorf("another method: %q", p.Detail)
		}
	})
}

func TestACompressedBodyIsRefused(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, _ = w.Write([]byte(`{"name":"x"}`))
		_ = w.Close()
		for _, coding := range []string{"gzip", "br", "identity, gzip"} {
			a := s.do(t, "POST", "/echo", packed.String(), "Content-Type", "application/json", "Content-Encoding",
				coding)
			a.problem(t, 415, "unsupported_media_type")
			if a.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("Accept-Encoding %q", a.Header.Get("Accept-Encoding"))
			}
		}
		if a := s.do(t, "POST", "/echo", `{"name":"x"}`, "Content-Type", "application/json", "Content-Encoding",
			"identity"); a.StatusCode != 200 {
			t.Errorf("identity: %d %s", a.StatusCode, a.body)
		}
	})
}

func TestDetailsOfARefusedBodyAreShortAndPrintable(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		a := s.do(t, "POST", "/echo", `{"`+strings.Repeat(`\u2028<\u001b`, 200)+`":1}`, "Content-Type",
			"application/json")
		if p := a.problem(t, 400, "malformed_request"); len(p.Detail) > 400 ||
			strings.ContainsAny(p.Detail, "\u2028\x1b") {
			t.Errorf("detail %q", p.Detail)
		}
	})
}

// RFC 6749 has no member for single fields, so the description names them.
func TestAnOAuthErrorNamesTheFields(t *testing.T) {
	t.Parallel()
	e := httpserver.OAuthErrorOf(httpserver.ErrValidation.Field("limit", "unknown", "is not a parameter of this route").
		Field("wait", "twice", "is there twice"))
	const want = "Some fields are not acceptable: limit is not a parameter of this route, wait is there twice"
	if e.Description != want {
		t.Errorf("%q", e.Description)
	}
}

func TestOAuthRoutesAnswerInOAuthsForm(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		form := []string{"Content-Type", "application/x-www-form-urlencoded"}
		for name, test := range map[string]struct {
			method, path, body string
			headers            []string
			status             int
			want               string
			header, value      string
		}{
			"good": {"POST", "/oauth/introspect", "token=a%20b&hint=&x=%C3%A9", form, 200,
				`{"hint":"","token":"a b","x":"é"}`, "", ""},
			"client": {"POST", "/oauth/introspect", "token=client", form, 401,
				`{"error":"invalid_client","error_description":"who 'are' you"}`, "Www-Authenticate",
				`Basic realm="authctl"`},
			"twice": {"POST", "/oauth/introspect", "token=a&token=b", form, 400,
				`{"error":"invalid_request","error_description":"A parameter was sent twice: 'token'"}`,
				"Cache-Control",
				"no-store"},
			"twice, empty": {"POST", "/oauth/introspect", "token=a&token=", form, 400,
				`{"error":"invalid_request","error_description":"A parameter was sent twice: 'token'"}`, "", ""},
			"bad escape": {"POST", "/oauth/introspect", "token=%zz", form, 400,
				`{"error":"invalid_request","error_description":"The body is not a valid form in UTF-8."}`, "", ""},
			"invalid UTF-8": {"POST", "/oauth/introspect", "token=%ff", form, 400,
				`{"error":"invalid_request","error_description":"The body is not a valid form in UTF-8."}`, "", ""},
			"JSON": {"POST", "/oauth/introspect", "{}", []string{"Content-Type", "application/json"}, 400,
				`{"error":"invalid_request","error_description":"Content-Type must be application/x-www-form-urlencoded, not 'application/json'."}`, "", ""},
			"internal": {"POST", "/oauth/introspect", "token=break", form, 500,
				`{"error":"server_error","error_description":"Something went wrong on our side"}`, "", ""},
			"other method": {"GET", "/oauth/introspect", "", nil, 405,
				`{"error":"invalid_request","error_description":"The method does not apply here: Allowed here: POST, OPTIONS."}`,
				"Allow", "POST, OPTIONS"},
			"no such path": {"GET", "/oauth/nowhere", "", nil, 404,
				`{"error":"invalid_request","error_description":"There is nothing here"}`, "", ""},
			"too large": {"POST", "/oauth/introspect", strings.Repeat("x", httpserver.MaxBody+1), form, 413,
				`{"error":"invalid_request","error_description":"The body is too large"}`, "", ""},
			"unknown method": {"BREW", "/oauth/introspect", "", nil, 405,
				`{"error":"invalid_request","error_description":"The method does not apply here: Allowed here: POST, OPTIONS."}`,
				"Allow", "POST, OPTIONS"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				a := s.do(t, test.method, test.path, test.body, test.headers...)
				if a.StatusCode != test.status || a.body != test.want ||
					a.Header.Get("Content-Type") != "application/json" {
					t.Errorf("%d %s %s", a.StatusCode, a.Header.Get("Content-Type"), a.body)
				}
				if test.header != "" && a.Header.Get(test.header) != test.value {
					t.Errorf("%s: %q", test.header, a.Header.Get(test.header))
				}
			})
		}
	})
}
