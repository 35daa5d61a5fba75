package password

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// imported returns the hashes of one of the import tests' files, by their names.
func imported(t testing.TB, name string) map[string]string {
	t.Helper()
	f, err := os.Open(filepath.Join("../userfile/testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hashes := make(map[string]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var one struct {
			Username string `json:"username"`
			Hash     string `json:"password_hash"`
		}
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			t.Fatal(err)
		}
		hashes[one.Username] = one.Hash
	}
	if len(hashes) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return hashes
}

func TestHashesAreReadAsTheirMakersWriteThem(t *testing.T) {
	t.Parallel()
	const password = "a quite good password"
	for _, file := range []string{"native.ndjson", "spring.ndjson", "node.ndjson", "werkzeug.ndjson", "aspnet.ndjson",
		"wordpress.ndjson", "php.ndjson", "passlib.ndjson", "389ds.ndjson"} {
		for name, text := range imported(t, file) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				encoded, scheme, err := Import(text)
				switch name {
				case "spring.noop", "spring.MD5", "spring.SHA-1", "spring.SHA-256", "spring.sha256":
					if err == nil || !strings.Contains(err.Error(), "Spring Security") {
						t.Errorf("got %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				h, err := parse(encoded)
				if err != nil || h.scheme != scheme {
					t.Fatalf("stored as %s: %s, %v", encoded, h.scheme, err)
				}
				if !h.matches([]byte(password)) || h.matches([]byte("A quite good password")) {
					t.Error("the right password fails, or a wrong one passes")
				}
				if again, _, err := Import(encoded); again != encoded || err != nil {
					t.Errorf("the second import makes it %s, %v", again, err)
				}
			})
		}
	}
}

func TestPasswordsAreComparedAsTheirMakersDo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ file, name, password string }{
		{"node.ndjson", "node.better-auth", "ａ　ｑｕｉｔｅ ｇｏｏｄ ｐａｓｓｗｏｒｄ"},
		{"node.ndjson", "node.better-auth-wide", "ａ　ｑｕｉｔｅ　ｇｏｏｄ　ｐａｓｓｗｏｒｄ"},
		{"wordpress.ndjson", "wordpress.6.8", " a quite good password\n"},
	} {
		h, err := parse(imported(t, test.file)[test.name])
		if err != nil {
			t.Fatal(err)
		}
		if !h.matches([]byte(test.password)) {
			t.Errorf("%s refuses %q", test.name, test.password)
		}
	}
}

func TestHashesOfDirectoriesAndOthersAreStoredInOneForm(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"{CRYPT}$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi":                                   "$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi",
		"{BLF-CRYPT}$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi":                               "$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi",
		"{ARGON2}$argon2i$v=19$m=64,t=3,p=1$/J/z3pvTGqO0FsI4Z0ypdQ$ayegN0B0Fk5rkzWlsXWVjcCXLHZpQinFZ+VftD/kh2E": "$argon2i$v=19$m=64,t=3,p=1$/J/z3pvTGqO0FsI4Z0ypdQ$ayegN0B0Fk5rkzWlsXWVjcCXLHZpQinFZ+VftD/kh2E",
		"3|$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":                "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
		"1|$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi":                                        "$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi",
		"{PBKDF2-SHA256}100$eE8ppfTeu7d2rlWKsTamtA$XLRwYu7M/KL.NInsaBnEN9FesVP.ZsTSbyzY2sK5wjA":                 "$pbkdf2-sha256$100$eE8ppfTeu7d2rlWKsTamtA$XLRwYu7M/KL.NInsaBnEN9FesVP.ZsTSbyzY2sK5wjA",
		"{PBKDF2}100$1DrHuHeu9f4/B4CwllLqfQ$NJXFztKujAxnuc9WG//GbPlI24U":                                        "$pbkdf2$100$1DrHuHeu9f4/B4CwllLqfQ$NJXFztKujAxnuc9WG//GbPlI24U",
		"{ssha}d3boVudKZP4M+GxzrdSRLoIpHt4oWx1kkWDTmw==":                                                        "{SSHA}d3boVudKZP4M+GxzrdSRLoIpHt4oWx1kkWDTmw==",
		"$scrypt$ln=16384,r=8,p=1$U29kaXVtQ2hsb3JpZGU$cCO9yzr9c0hGHAbNgf046/2o+7qQT44+qbVD9lRdofI":              "$scrypt$ln=14,r=8,p=1$U29kaXVtQ2hsb3JpZGU$cCO9yzr9c0hGHAbNgf046/2o+7qQT44+qbVD9lRdofI",
	} {
		if got, _, err := Import(text); got != want || err != nil {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

// Hexadecimal digits are valid base64 too, but the decoded bytes are no password's hash.
func TestAHashThatNoPasswordCanMatchIsRefused(t *testing.T) {
	t.Parallel()
	const hexSalt, hexDigest = "736f6d6573616c74736f6d6573616c74", "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"
	for _, text := range []string{
		"$argon2id$v=19$m=256,t=2,p=1$" + hexSalt + "$" + hexDigest,
		"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$" + hexDigest,
		"$argon2id$v=19$m=256,t=2,p=1$" + hexSalt + "$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
		"$argon2id$v=19$m=256,t=2,p=1$" + strings.ToUpper(hexSalt+"$"+hexDigest),
		"argon2$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$" + hexDigest,
		"$pbkdf2-sha256$i=1000,l=48$" + hexSalt + "$" + hexDigest,
		"$pbkdf2-sha256$1000$" + hexSalt + "$" + hexDigest,
		"$scrypt$ln=10,r=8,p=1$" + hexSalt + "$" + hexDigest,
		"pbkdf2_sha256$1000$salt$" + hexDigest,
		"scrypt$1024$salt$8$1$" + hexDigest,
		"{SSHA}" + hexDigest,
		// The base64 of the hexadecimal digits, and of the base64.
		"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$OWRmZWI5MTBlODBiYWQwMzExZmVlMjBmOWMwZTJiMTI",
		"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$bmY2NUVPZ0xyUU1SL3VJUG5BNHJFc0Y1aDdUS3lRd3U5VTFiTUNIR2kvND0",
	} {
		if _, _, err := Import(text); err == nil || !strings.Contains(err.Error(), "hexadecimal") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, fine := range []string{ // a salt that is used as written may be hexadecimal
		"pbkdf2_sha256$1000$" + hexSalt + "$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=",
		"pbkdf2:sha256:1000$" + hexSalt + "$" + hexDigest,
	} {
		if _, _, err := Import(fine); err != nil {
			t.Errorf("%s: %v", fine, err)
		}
	}
}

func TestEachSystemWhoseHashesAreNotReadIsNamed(t *testing.T) {
	t.Parallel()
	for text, system := range map[string]string{
		"$P$B984JDF85jdhsu3hdjfhd83jdk":                            "WordPress",
		"$H$9IQRaTwmfeRo7ud9Fh4E2PdI0S3r.L0":                       "phpBB",
		"$wp$argon2id$v=19$m=65536,t=4,p=1$eA$eA":                  "WordPress",
		"$S$DewxBjVbMtiDPpIjoDmMhLZaiA4fzO1kCzTxbUjCDIPKe0tJ0Hrm":  "Drupal",
		"U$S$DewxBjVbMtiDPpIjoDmMhLZaiA4fzO1kCzTxbUjCDIPKe0tJ0Hrm": "Drupal",
		"{noop}secret": "Spring",
		"{MD5}{salt}f6b7ca84d1b72a8ea239e9e09470b337":               "Spring",
		"{pbkdf2}5d923b44a6d129f3ddf3e3c8d29412723dcbde72445e8ef6b": "Spring",
		"{CLEARTEXT}secret":                                      "directories",
		"{CRYPT}$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido":          "crypt(3)",
		"{SMD5}X03MO1qnZdYdgyfeuILPmQ==":                         "directories",
		"$5$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido":                 "crypt(3)",
		"$apr1$salt$xxxxxxxxxxxxxxxxxxxxxx":                      "Apache",
		"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$tnSYvahCwPBHKZUspmcxMfb0": "yescrypt",
		"$sha1$40000$jtNX3nZ2$hBNaIXkt4wBI2o5rsi8KejSjNqIq":      "NetBSD",
		"*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19":              "MySQL",
		"SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy":          "PostgreSQL",
		"sha1$salt$5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8":     "Django",
		"pbkdf2:md5:1000$salt$5f4dcc3b5aa765d61d8327deb882cf99":  "Werkzeug",
		"fakeHash:salt=fakeSalt:password=secret":                 "Firebase",
		"5f4dcc3b5aa765d61d8327deb882cf99":                       "MD5",
		"5f4dcc3b5aa765d61d8327deb882cf99:salt":                  "no known scheme",
		"5F4DCC3B5AA765D61D8327DEB882CF99:abcd":                  "MD5",
	} {
		_, _, err := Import(text)
		if err == nil || !strings.Contains(err.Error(), system) {
			t.Errorf("%s: %v, want %q", text, err, system)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the reason quotes it: %v", text, err)
		}
	}
}

// What Import returns can be read and imported again unchanged, and stays within the limits of
// cost.
func FuzzImport(f *testing.F) {
	for _, file := range []string{"spring.ndjson", "node.ndjson", "werkzeug.ndjson", "aspnet.ndjson",
		"wordpress.ndjson", "php.ndjson", "passlib.ndjson", "389ds.ndjson"} {
		for _, text := range imported(f, file) {
			f.Add(text)
		}
	}
	for _, text := range bombs() {
		if len(text) < maxEncoded {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		encoded, _, err := Import(text)
		if err != nil {
			return
		}
		if again, _, err := Import(encoded); again != encoded || err != nil {
			t.Fatalf("%q becomes %q, and that becomes %q, %v", text, encoded, again, err)
		}
		if work := costOf(t, encoded); work > 1 {
			t.Fatalf("%q costs %.2f of the limit", encoded, work)
		}
	})
}
