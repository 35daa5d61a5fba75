package httpserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/swagger"
	"github.com/valyala/fasthttp"
)

// Documentation makes the routes of a page that shows an OpenAPI document and can try it out,
// below a path such as /docs/swagger, together with the document as doc.json. All addresses on
// the page are relative, so that it works behind a path prefix.
func Documentation(below, title string, document []byte) []Route {
	sum := sha256.Sum256(document)
	etag := `"` + hex.EncodeToString(sum[:16]) + `"`
	files := newSwaggerFiles(below, title)
	return []Route{
		{Method: http.MethodGet, Path: below + "/doc.json", page: func(x *exchange) error {
			x.carrier.set("Cache-Control", "no-cache")
			x.carrier.set("ETag", etag)
			if MatchesETag(x.combined("If-None-Match"), etag) {
				x.send(http.StatusNotModified, nil)
				return nil
			}
			x.carrier.set("Content-Type", "application/json")
			x.send(http.StatusOK, document)
			return nil
		}},
		{Method: http.MethodGet, Path: below, page: redirect(path.Base(below) + "/index.html")},
		{Method: http.MethodGet, Path: below + "/", page: redirect("index.html")},
		{Method: http.MethodGet, Path: below + "/{file}", page: files.serve},
	}
}

// Page is a page for people. in returns it in the language that comes closest to a language tag or
// an Accept-Language header; the query ?lang= goes before the header. What the page loads, runs and
// looks like must be within it.
func Page(path string, in func(preferred string) []byte) Route {
	return Route{Method: http.MethodGet, Path: path, page: func(x *exchange) error {
		preferred := x.combined("Accept-Language")
		if query, err := url.ParseQuery(x.carrier.query()); err == nil && query.Get("lang") != "" {
			preferred = query.Get("lang")
		}
		body := in(preferred)
		x.carrier.set("Content-Type", "text/html; charset=utf-8")
		x.carrier.set("Content-Security-Policy", closedPolicy(body))
		x.carrier.set("Cache-Control", "no-store")
		x.carrier.add("Vary", "Accept-Language")
		x.send(http.StatusOK, body)
		return nil
	}}
}

func redirect(to string) func(*exchange) error {
	return func(x *exchange) error {
		x.carrier.set("Location", to)
		x.send(http.StatusMovedPermanently, nil)
		return nil
	}
}

// swaggerFiles are the page and its parts. gofiber/swagger only serves them through Fiber, so
// they are fetched from a Fiber application made for it. Each file is kept, since it does not
// change.
type swaggerFiles struct {
	handler fasthttp.RequestHandler
	mu      sync.Mutex
	kept    map[string]swaggerFile
}

type swaggerFile struct {
	contentType string
	body        []byte
	policy      string // content security policy of a page; empty for other files
}

func newSwaggerFiles(below, title string) *swaggerFiles {
	app := fiber.New(fiber.Config{DisableStartupMessage: true, CaseSensitive: true, StrictRouting: true})
	page := swagger.Config{Title: title, URL: "doc.json", PersistAuthorization: true, TryItOutEnabled: true}
	app.Get(below+"/*", swagger.New(page))
	return &swaggerFiles{handler: app.Handler(), kept: map[string]swaggerFile{}}
}

func (s *swaggerFiles) serve(x *exchange) error {
	// A file has one path here, since what is served is kept by its path. Fiber takes more of them.
	if !plainID(x.route.param("file", x.carrier.path())) {
		return ErrNotFound
	}
	file, err := s.file(x.carrier.path())
	if err != nil {
		return err
	}
	if file.policy != "" {
		x.carrier.set("Content-Security-Policy", file.policy)
	}
	x.carrier.set("Content-Type", file.contentType)
	x.send(http.StatusOK, file.body)
	return nil
}

func (s *swaggerFiles) file(target string) (swaggerFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if file, ok := s.kept[target]; ok {
		return file, nil
	}
	var fctx fasthttp.RequestCtx
	fctx.Request.SetRequestURI(target)
	s.handler(&fctx)
	if fctx.Response.StatusCode() != http.StatusOK {
		return swaggerFile{}, ErrNotFound
	}
	file := swaggerFile{contentType: string(fctx.Response.Header.ContentType()),
		body: bytes.Clone(fctx.Response.Body())}
	if strings.HasPrefix(file.contentType, "text/html") {
		file.body = foreignStyle.ReplaceAll(file.body, nil)
		file.policy = pagePolicy(file.body)
	}
	s.kept[target] = file // only files that exist, so it stays small
	return file, nil
}

// foreignStyle is the page's link to fonts on another host. That host need not know who reads the
// documentation, and the page's own policy would refuse it with an error.
var foreignStyle = regexp.MustCompile(`\s*<link href="https://[^>]*>`)

// MatchesETag reports whether If-None-Match (RFC 9110 §13.1.2) names the entity tag.
func MatchesETag(header, etag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimPrefix(strings.TrimSpace(one), "W/"); one == etag || one == "*" {
			return true
		}
	}
	return false
}
