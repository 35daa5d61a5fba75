package userfile

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFirebaseHashParametersAreReadAsTheConsoleShowsThem(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile("testdata/firebase-hash.txt")
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ParseFirebaseHash(string(good)); err != nil || h.Rounds != 8 || h.MemCost != 14 ||
		h.SaltSeparator != "Bw==" {
		t.Errorf("%+v, %v", h, err)
	}
	for name, text := range map[string]string{
		"empty": "", "another algorithm": strings.Replace(string(good), "SCRYPT", "BCRYPT", 1),
		"a bomb": strings.Replace(string(good), "14", "24", 1), "no rounds": strings.Replace(string(good),
			"rounds: 8", "", 1),
		"no key": strings.Replace(string(good), "base64_signer_key", "x",
			1), "a broken key": strings.Replace(string(good), "jxspr", "j*spr", 1),
	} {
		if _, err := ParseFirebaseHash(text); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "8zykbdLGjFQ3McFUH0") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

func FuzzTableReadsTheRowsOfAnyCSV(f *testing.F) {
	f.Add("a,b\nc,d\n")
	f.Add("a,\"b\nc\"\r\n\"d\"\"\",e")
	f.Add("\"a\nb,c\nd,\"e\n")
	f.Add("\"\n\"")
	f.Add("\x00")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.HasPrefix(strings.TrimSpace(text), "sep=") {
			return // it is for us
		}
		in, err := newTable(text)
		if err != nil {
			return // UTF-16, or no text
		}
		count := 0
		var got [][]string
		clean := true
		for {
			rec, err := in.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if count++; count > len(text)+1 {
				t.Fatal("the reader does not end")
			}
			clean = clean && rec.err == nil
			got = append(got, slices.Clone(rec.fields))
		}
		// The standard library reads the whole file; Table must read the same rows one by one.
		want, err := csv.NewReader(strings.NewReader(text)).ReadAll()
		for _, row := range want {
			if slices.ContainsFunc(row, func(field string) bool { return valueOf(field) != field }) {
				return // a word for "no value", which it is not inside quotes
			}
		}
		blank := slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
			return strings.TrimSpace(line) == ""
		})
		if err == nil && clean && !blank && !strings.Contains(text, "\r") &&
			!slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func newTable(text string) (*table, error) {
	split, _, err := newSplitter(strings.NewReader("\n"+text), FormatCSV, source{csv: nativeRow, headless: true})
	if err != nil {
		return nil, err
	}
	t := split.(*table)
	t.separator = ',' // whatever the first line looks like
	return t, nil
}

func FuzzDocumentFindsTheObjectsOfAnyJSON(f *testing.F) {
	f.Add(`[{"a":"}"},{"b":"\\\""}]`)
	f.Add(`{"x":{"users":[{}]},"users":[{"c":[{}]}],"y":[1,{"users":[{}]}]}`)
	f.Add(`{"a":1}{"b":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		split, _, err := newSplitter(strings.NewReader(text), FormatJSON, source{json: nativeObject})
		if err != nil {
			return
		}
		var got []string
		for {
			rec, err := split.next()
			if err != nil {
				break
			}
			if len(rec.object) > MaxRecord {
				t.Fatal("a record is longer than allowed")
			}
			got = append(got, string(rec.object))
			if len(got) > len(text) {
				t.Fatal("the reader does not end")
			}
		}
		if strings.Contains(text, "users") || strings.Contains(text, `\`) {
			return // of such a list, the objects inside are returned
		}
		var want []json.RawMessage
		if json.Unmarshal([]byte(text), &want) == nil && strings.HasPrefix(strings.TrimSpace(text), "[") {
			var objects []string
			for _, v := range want {
				if v[0] != '{' {
					return // a list of anything else ends there
				}
				objects = append(objects, string(v))
			}
			if !slices.Equal(got, objects) {
				t.Errorf("got %q, want %q", got, objects)
			}
		}
	})
}

func TestTimesAreReadAsSystemsWriteThem(t *testing.T) {
	t.Parallel()
	want := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, text := range []string{
		"2021-03-04T05:06:07Z", "2021-03-04T07:06:07+02:00", "2021-03-04 05:06:07+00",
		"2021-03-04 05:06:07.000000+00", "2021-03-04 05:06:07",
		"2021-03-04 07:06:07+0200", "2021-03-04 07:06:07 +02:00", "2021-03-04 05:06:07 UTC",
		"2021-03-04 05:06:07 +0000 UTC", "2021-03-04T05:06:07",
		"2021-03-04 05:06:07.0000000 +00:00", "2021-03-04 05:06:07,000", "Thu, 04 Mar 2021 05:06:07 GMT",
		"20210304T050607Z",
		"1614834367", "1614834367.0", "1614834367000", "1614834367000000", "1614834367000000000", " 1614834367 ",
	} {
		if got, err := parseTime("t", text); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := parseTime("t", "2021-03-04"); err != nil || got.Format(time.RFC3339) != "2021-03-04T00:00:00Z" {
		t.Errorf("a day: %v, %v", got, err)
	}
	for _, text := range []string{"", " ", "0", "-infinity", "0000-00-00 00:00:00", "0000-00-00"} {
		if got, err := parseTime("t", text); err != nil || !got.IsZero() {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"yesterday", "04.03.2021", "03/04/2021", "2021-13-04 05:06:07",
		"2021-03-04 05:06:07 CET", "-1614834367", "12345", "1614834367s", strings.Repeat("9", 40)} {
		if got, err := parseTime("t", text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// What is none of our forms is named as what it is, and nothing of it is printed.
func TestOtherFormsAreNamed(t *testing.T) {
	t.Parallel()
	for begin, want := range map[string]string{
		"\xff\xfe{\x00":                         "UTF-16",
		"{\x00\"\x00u\x00":                      "UTF-16",
		"\x00{\x00\"\x00u":                      "UTF-16",
		"\x1f\x8b\x08":                          "gunzip",
		"BZh91AY":                               "bunzip2",
		"\xfd7zXZ\x00":                          "unxz",
		"\x28\xb5\x2f\xfd\x04":                  "zstd",
		"PK\x03\x04":                            "ZIP",
		"SQLite format 3\x00":                   "SQLite",
		"PGDMP\x01\x0e":                         "dump",
		"--\n-- PostgreSQL database dump\n":     "dump",
		"INSERT INTO users VALUES (1,'secret')": "dump",
		"COPY public.users (id) FROM stdin;":    "dump",
		"dn: uid=secret,dc=example,dc=com\n":    "LDIF",
		"dn:: c2VjcmV0\n":                       "LDIF",
		"version: 1\r\n\r\ndn: uid=secret":      "LDIF",
		"# extended LDIF\n#\n# LDAPv3\n":        "LDIF",
		"users (1,'secret')":                    "without a heading",
		"\x1b[31msecret,b":                      "without a heading",
		"<users><user>secret</user></users>":    "without a heading",
		"- name: secret":                        "without a heading",
		"name,hash":                             "lacks the column",
	} {
		_, err := Open(strings.NewReader(begin), "native", FormatAuto, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", begin, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error repeats it: %v", begin, err)
		}
	}
}

// A dump has whatever the project has.
func TestFieldsOfOtherModelsOfDjangoMayHaveAnyType(t *testing.T) {
	t.Parallel()
	for text, lost := range map[string][]string{
		`{"model":"shop.order","pk":1,"fields":{"confirmed":"2021-03-04T05:06:07Z","verified":3,"username":7,"is_active":"no"}}`: nil,
		`{"model":"shop.guest","fields":{"password":null,"username":["a"]}}`:                                                     nil,
		`{"model":"otp_totp.totpdevice","pk":1,"fields":{"confirmed":true}}`:                                                     {"otp"},
		`{"model":"otp_totp.totpdevice","pk":1,"fields":{"confirmed":false}}`:                                                    nil,
		`{"model":"account.emailaddress","pk":1,"fields":{"verified":false}}`:                                                    {"unconfirmed_address"},
		`{"model":"account.emailaddress","pk":1,"fields":{"verified":true,"email":"a@example.com"}}`:                             nil,
	} {
		in, err := Open(strings.NewReader("["+text+"]"), "django", FormatAuto, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := in.Next(); err != nil || rec.Refused != nil || !rec.Other || !slices.Equal(rec.Lost, lost) {
			t.Errorf("%s: %+v, %v", text, rec, err)
		}
	}
}

func TestATelephoneNumberBesideTheNameIsCounted(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/firebase-hash.txt")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := ParseFirebaseHash(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for source, input := range map[string]string{
		"firebase": `{"users":[{"localId":"a","email":"a@example.com","phoneNumber":"+15550100"}]}`,
		"auth0":    `{"email":"a@example.com","phone_number":"+15550100"}`,
		"supabase": `{"email":"a@example.com","phone":"15550100"}`,
		"zitadel":  `{"orgId":"1","humanUsers":[{"userId":"2","user":{"userName":"a","phone":{"phone":"+15550100"}}}]}`,
	} {
		in, err := Open(strings.NewReader(input), source, FormatAuto, hash)
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := in.Next(); err != nil || !slices.Equal(rec.Lost, []string{"phone_number"}) {
			t.Errorf("%s: lost %q, %v", source, rec.Lost, err)
		}
	}
	in, err := Open(strings.NewReader(`{"phone":"15550100"}`), "supabase", FormatAuto, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := in.Next(); err != nil || len(rec.Lost) != 0 || rec.Username != "15550100" {
		t.Errorf("a number as the name: %+v, %v", rec, err)
	}
}

// SQLite and MySQL have no booleans, and write numbers into JSON.
func TestAConfirmedAddressMayBeANumber(t *testing.T) {
	t.Parallel()
	for member, want := range map[string]string{
		"true": "true", "false": "false", "1": "true", "0": "false", "null": "none", `"yes"`: "true",
		"2": "refused", "[1]": "refused", `{"a":1}`: "refused",
	} {
		rec, err := nativeObject([]byte(`{"username":"a","password_hash":"x","email_verified":` + member + `}`))
		got := "none"
		switch {
		case err != nil:
			got = "refused"
		case rec.Confirmed != nil && *rec.Confirmed:
			got = "true"
		case rec.Confirmed != nil:
			got = "false"
		}
		if got != want {
			t.Errorf("%s: %s, %v", member, got, err)
		}
	}
}
