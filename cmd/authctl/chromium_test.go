package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// TestPagesInABrowser has Chromium run pages of four origins against the service. The browser
// takes every host for this machine, so that these are different sites to it, under https:
//
//	auth.example.test   the service
//	app.example.test    a page of app.origins on the service's site
//	app.other.test      a page of app.origins on another site
//	evil.example.test   an attacker's page on the service's site, to which browsers send its cookies
//	evil.other.test     an attacker's page on another site
func TestPagesInABrowser(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	f := newPlanting(t)
	certificate, key := b.certificate(f.dir)
	port, pages := testenv.FreePort(t), b.port()
	api := fmt.Sprintf("https://auth.example.test:%d", port)
	f.env = append(f.env, fmt.Sprint("APP_PORT=", port), "AUTH_TOKEN_ISSUER="+api, "AUTH_PASSWORD_BCRYPT_COST=4",
		"AUTH_REFRESH_GRACE=60s", // of the refreshes of two tabs one may be late
		"APP_TLS_CERT_FILE="+certificate, "APP_TLS_KEY_FILE="+key,
		fmt.Sprintf("APP_ORIGINS=https://app.example.test:%s,https://app.other.test:%s", pages, pages))
	f.serve()

	// What pages do all the time.
	const helpers = `
		const api = %q + '/api/v1/auth';
		async function post(path, body, headers) {
			const r = await fetch(api + path, {
				method: 'POST', credentials: 'include', keepalive: true,
				headers: {'Content-Type': 'application/json', ...headers}, body: JSON.stringify(body),
			});
			const text = await r.text();
			return {status: r.status, text, body: text ? JSON.parse(text) : {}};
		}
		const who = {username: %q, password: 'correct horse battery staple', transport: 'cookie'};
		`
	as := func(name, code string) string { return fmt.Sprintf(helpers, api, name) + code }
	app := b.tab("app.example.test")

	type outcome struct {
		Status  int
		Text    string
		Body    struct{ SessionID, Code, RefreshToken string }
		Cookies string
	}
	post := func(tab *tab, name, call string) (o outcome) {
		t.Helper()
		tab.eval(as(name, "const r = await post("+call+
			"); return {Status: r.status, Text: r.text, Cookies: document.cookie, Body: "+
			"{SessionID: r.body.session_id, Code: r.body.code, RefreshToken: r.body.refresh_token}};"), &o)
		if strings.Contains(o.Text, "art_") || o.Cookies != "" {
			t.Errorf("%s sees the refresh token: %s, cookies %q", call, o.Text, o.Cookies)
		}
		return o
	}
	registered := post(app, "alice", `'/register', who`)
	if registered.Status != 201 || registered.Body.SessionID == "" {
		t.Fatalf("register: %+v", registered)
	}
	session := registered.Body.SessionID
	goesOn := func(when string) {
		t.Helper()
		if o := post(app, "alice", `'/refresh', {}`); o.Status != 200 || o.Body.SessionID != session {
			t.Fatalf("%s: refresh: %+v", when, o)
		}
	}
	goesOn("signed in")
	app.reload()
	goesOn("loaded again")

	// Two tabs refresh at once, again and again. Whichever token ends up in the cookie must be
	// good.
	second := b.tab("app.example.test")
	const burst = `const all = await Promise.all(Array.from({length: 8}, () => post('/refresh', {}))); return all.map(r => r.status + ' ' + r.body.session_id);`
	for range 5 {
		var one, two []string
		var both sync.WaitGroup
		both.Go(func() { app.eval(as("alice", burst), &one) })
		both.Go(func() { second.eval(as("alice", burst), &two) })
		both.Wait()
		if len(one) != 8 || len(two) != 8 {
			t.Fatalf("%d and %d answers", len(one), len(two))
		}
		for _, got := range append(one, two...) {
			if got != "200 "+session {
				t.Errorf("of two tabs one hears %s", got)
			}
		}
		goesOn("after two tabs refreshed")
	}

	// An attacker's page tries everything: what a page may do without a preflight, and what it may
	// not. It must read nothing and change nothing.
	for _, host := range []string{"evil.example.test", "evil.other.test"} {
		evil := b.tab(host)
		for _, target := range []string{"/refresh", "/logout", "/login", "/sessions", "/me"} {
			for _, media := range []string{"application/json", "text/plain", "application/x-www-form-urlencoded", ""} {
				for _, mode := range []string{"cors", "no-cors", "beacon"} {
					var read string
					evil.eval(as("mallory", fmt.Sprintf(`
						const target = api + %q, media = %q, mode = %q;
						const body = target.endsWith('/login') ? JSON.stringify(who) : '{}';
						try {
							if (mode === 'beacon') { navigator.sendBeacon(target, new Blob([body], {type: media})); return ''; }
							const r = await fetch(target, {method: 'POST', mode, credentials: 'include', body, headers: media ? {'Content-Type': media} : {}});
							return await r.text();
						} catch (e) { return ''; }`, target, media, mode)), &read)
					if read != "" {
						t.Errorf("%s reads the answer of %s (%s, %s): %s", host, target, media, mode, read)
					}
				}
			}
			// Forms, in a window and in a frame.
			evil.eval(as("mallory", fmt.Sprintf(`
				const w = window.open('about:blank', 'victim'); if (!w) throw 'no window';
				const frame = document.createElement('iframe'); frame.name = 'frame'; document.body.append(frame);
				for (const where of ['victim', 'frame']) for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
					const form = document.createElement('form');
					form.action = api + %q; form.method = 'POST'; form.enctype = type; form.target = where;
					const field = document.createElement('input'); field.name = '{"a":"'; field.value = '"}'; form.append(field);
					document.body.append(form); form.submit();
					await new Promise(done => setTimeout(done, 50));
				}
				try { if (w.document.body.innerText) return w.document.body.innerText } catch (e) {}
				w.close(); frame.remove(); return '';`, target)), new(string))
		}
		goesOn("after what " + host + " did")
	}
	// All attacks arrived, with the cookie where browsers send it, and the service refused each for
	// the right reason.
	if log := readFile(t, filepath.Join(f.dir, "log", "authctl.log")); strings.Count(log,
		`"code":"unsupported_media_type"`) < 10 {
		t.Errorf("the attacks did not arrive:\n%s", log)
	}

	// Browsers do not send the cookie from pages of another site, listed or not. A sign-in there
	// begins a session, but its token is lost.
	other := b.tab("app.other.test")
	if o := post(other, "alice", `'/login', who`); o.Status != 200 {
		t.Errorf("another site's sign-in: %+v", o)
	}
	if o := post(other, "alice", `'/refresh', {}`); o.Status != 401 || o.Body.Code != "invalid_refresh_token" {
		t.Errorf("another site's refresh: %+v", o)
	}
	goesOn("after another site's sign-in")

	// The lines from the documentation, in a new tab.
	page := readFile(t, "../../docs/browsers.md")
	_, lines, _ := strings.Cut(page, "```js\n")
	lines, _, found := strings.Cut(lines, "```")
	if lines = strings.Replace(lines, "https://auth.example.com/api/v1/auth", api+"/api/v1/auth", 1); !found ||
		!strings.Contains(lines, api) {
		t.Fatal("docs/browsers.md has no lines")
	}
	said, third := "", b.tab("app.example.test")
	third.eval(lines+`
		const said = [];
		said.push(await resume());
		said.push((await signIn('alice', 'wrong')).status);
		said.push((await signIn('alice', 'correct horse battery staple')).ok);
		access = access + 'x'; // as if it had expired
		said.push((await (await call(api + '/me')).json()).username);
		said.push((await changePassword('correct horse battery staple', 'staple battery horse correct')).ok);
		said.push(await resume(), (await signOut()).ok, await resume(), document.cookie === '');
		return said.join(' ');`, &said)
	if said != "true 401 true alice true true true false true" {
		t.Errorf("the lines of the documentation: %s", said)
	}

	// Another person signs in in another tab. What the first tab was about to send is not sent as that person.
	lines, anew := strings.Replace(lines, "location.reload()", "anew = true", 1), ""
	b.tab("app.example.test").eval(`let anew, sent;`+lines+`
		await signIn('alice', 'staple battery horse correct');
		await fetch(api + '/register', {method: 'POST', credentials: 'include', headers: {'Content-Type': 'application/json'},
			body: JSON.stringify({username: 'carol', password: 'correct horse battery staple', transport: 'cookie'})});
		access = access + 'x';
		call(api + '/me').then(async (answer) => { sent = (await answer.json()).username; }, (e) => { sent = String(e); });
		while (!anew && !sent) await new Promise((done) => setTimeout(done, 20));
		await new Promise((done) => setTimeout(done, 100));
		return anew + ' ' + sent;`, &anew)
	if anew != "true undefined" {
		t.Errorf("carol signed in in another tab: %s", anew)
	}
	// Nor does signing out in the first tab sign that person out.
	b.tab("app.example.test").eval(lines+`
		let anew;
		await signIn('alice', 'staple battery horse correct');
		await fetch(api + '/register', {method: 'POST', credentials: 'include', headers: {'Content-Type': 'application/json'},
			body: JSON.stringify({username: 'dave', password: 'correct horse battery staple', transport: 'cookie'})});
		const {status} = await signOut();
		session = undefined; // as in a new tab
		return status + ' ' + await resume();`, &anew)
	if anew != "204 true" {
		t.Errorf("alice signed out where dave had signed in since: %s", anew)
	}
	if o := post(app, "alice", `'/login', {...who, password: 'staple battery horse correct'}`); o.Status != 200 {
		t.Errorf("sign in again: %+v", o)
	}

	if o := post(second, "alice", `'/logout', {}`); o.Status != 204 {
		t.Errorf("sign out: %+v", o)
	}
	if o := post(app, "alice", `'/refresh', {}`); o.Status != 401 || o.Body.Code != "invalid_refresh_token" {
		t.Errorf("signed out in another tab: %+v", o)
	}
}

// browser is a Chromium that the test drives: each page asks what to do next, does it, and reports
// the result.
type browser struct {
	t      *testing.T
	server *httptest.Server // of the pages
	opener *tab             // the one that opens the others
	mu     sync.Mutex
	tabs   map[string]*tab
}

// tab is a page in a tab of its own.
type tab struct {
	b      *browser
	name   string
	loaded chan struct{} // set once the page asks for orders
	orders chan string
	told   chan []byte
}

const steered = `<!doctype html><meta charset="utf-8"><title>a page</title><body><script>
addEventListener('load', async () => {
	const tab = new URLSearchParams(location.search).get('tab');
	for (;;) {
		const order = await (await fetch('/next?tab=' + tab)).text();
		if (order === '') continue;
		if (order === 'reload') { location.reload(); return; }
		let told;
		try { told = {value: await eval('(async () => {' + order + '})()')}; } catch (e) { told = {failed: String(e)}; }
		await fetch('/told?tab=' + tab, {method: 'POST', body: JSON.stringify(told)});
	}
});
</script>`

// openBrowser starts Chromium until the test ends.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	command := testenv.Program(t, "install the package chromium", "chromium", "chromium-browser", "google-chrome")
	b := &browser{t: t, tabs: map[string]*tab{}}
	b.server = httptest.NewTLSServer(http.HandlerFunc(b.steer))
	t.Cleanup(b.server.Close)
	b.opener = b.add()
	cmd := exec.CommandContext(t.Context(), command, "--headless=new", "--no-sandbox", "--disable-gpu",
		"--disable-quic", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-default-apps",
		"--disable-popup-blocking", "--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows",
		"--disable-renderer-backgrounding",
		"--ignore-certificate-errors", "--host-resolver-rules=MAP * 127.0.0.1",
		"--user-data-dir="+filepath.Join(t.TempDir(), "profile"),
		b.address("opener.test", b.opener))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	testenv.Must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	select {
	case <-b.opener.loaded:
	case err := <-ended:
		ended <- err
		t.Fatalf("Chromium ended: %v\n%s", err, &said)
	case <-time.After(patience):
		t.Fatal("Chromium shows no page")
	}
	return b
}

func (b *browser) port() string {
	u, err := url.Parse(b.server.URL)
	if err != nil {
		b.t.Fatal(err)
	}
	return u.Port()
}

func (b *browser) address(host string, page *tab) string {
	return fmt.Sprintf("https://%s:%s/?tab=%s", host, b.port(), page.name)
}

func (b *browser) add() *tab {
	b.mu.Lock()
	defer b.mu.Unlock()
	page := &tab{b: b, name: strconv.Itoa(len(b.tabs)), loaded: make(chan struct{}, 1), orders: make(chan string),
		told: make(chan []byte)}
	b.tabs[page.name] = page
	return page
}

// tab opens a page of a host. The opener keeps no reference to it.
func (b *browser) tab(host string) *tab {
	b.t.Helper()
	page := b.add()
	b.opener.eval(fmt.Sprintf("window.open(%q, '_blank', 'noopener'); return '';", b.address(host, page)), new(string))
	select {
	case <-page.loaded:
	case <-time.After(patience):
		b.t.Fatalf("the page of %s is not loaded", host)
	}
	return page
}

// reload loads the page again. The new page takes the next order, since the old one no longer asks.
func (p *tab) reload() {
	p.b.t.Helper()
	select {
	case p.orders <- "reload":
	case <-time.After(patience):
		p.b.t.Fatalf("the page %s does not ask", p.name)
	}
}

// eval runs the body of an async function in the page, and reads what it returns.
func (p *tab) eval(code string, into any) {
	p.b.t.Helper()
	select {
	case p.orders <- code:
	case <-time.After(patience):
		p.b.t.Errorf("the page %s does not ask", p.name)
		return
	}
	select {
	case text := <-p.told:
		told := struct {
			Value  any
			Failed string
		}{Value: into}
		if err := json.Unmarshal(text, &told); err != nil || told.Failed != "" {
			p.b.t.Errorf("the page %s: %s %v: %s", p.name, told.Failed, err, text)
		}
	case <-time.After(patience):
		p.b.t.Errorf("the page %s does not say what came of it", p.name)
	}
}

// steer serves the pages, and what they ask and tell.
func (b *browser) steer(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	page := b.tabs[r.URL.Query().Get("tab")]
	b.mu.Unlock()
	if page == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	switch r.URL.Path {
	case "/":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(steered))
	case "/next":
		select {
		case page.loaded <- struct{}{}: // the script runs
		default:
		}
		select {
		case order := <-page.orders:
			_, _ = w.Write([]byte(order))
		case <-r.Context().Done():
		case <-time.After(time.Second): // so that a closed page is noticed
		}
	case "/told":
		var text json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&text); err != nil {
			b.t.Error(err)
		}
		select {
		case page.told <- text:
		case <-r.Context().Done():
		}
	}
}

// certificate writes the certificate of the pages to files, and returns their names.
func (b *browser) certificate(dir string) (certificate, key string) {
	b.t.Helper()
	own := b.server.TLS.Certificates[0]
	private, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		b.t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			b.t.Fatal(err)
		}
		return name
	}
	return write("cert.pem", "CERTIFICATE", own.Certificate[0]), write("key.pem", "PRIVATE KEY", private)
}
