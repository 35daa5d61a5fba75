package password

import (
	"bytes"
	"encoding/hex"
	"math"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// elsewhere is the password of the hashes made by passlib 1.7.4, Django 5.2 and Python's hashlib.
const elsewhere = "paßword 🔑"

type vector struct {
	scheme   Scheme
	password string
	encoded  string
}

// vectors has a hash of every form, made by the software that writes the form or taken from its
// specification.
func vectors() []vector {
	return []vector{
		{Bcrypt, elsewhere, "$2a$04$hZ7tproNSccSxcnZGSbFSO/G28QltlowOiZswlMORWdzlbWWTICqS"},
		{Bcrypt, elsewhere, "$2b$04$JM3fdA3u7broVn.KYNCw6Oh1Od0oppYZZoi3A2V0DhSVZzzB977A."},
		{Bcrypt, elsewhere, "$2y$04$W/E6koWuryOw3uivEEuC3Ow1jzd6KZDDoeYrYnm.ocAxrGjAsclUi"},
		{BcryptSHA256, elsewhere, "$bcrypt-sha256$v=2,t=2b,r=5$FEpxtvfHZevciU.xXBwIy.$RMEhnL6vUdRSBW2qPvFVe05dC/W/JV6"},
		{BcryptSHA256, elsewhere, "$bcrypt-sha256$2b,5$fDJ3iWGwH8AptQ.qJ4GAZO$nqM5Tc.N1HP/8aC815cdwSR9D97Lu5."},
		{BcryptSHA256, elsewhere, "$bcrypt-sha256$2a,5$JT1lH2EUZssfcMoJ6kYuXO$SzCITjd82iNqvO8hm.xBV2YO0RtIYty"},
		{Argon2id, elsewhere,
			"$argon2id$v=19$m=256,t=2,p=2$JaT0nnNujdFaS6l1zrmXMg$AxCyvWGfpvH4t5BbNquFmLK8NWCgEXAQNgvxq/d/V4M"},
		{Argon2i, elsewhere,
			"$argon2i$v=19$m=64,t=3,p=1$/J/z3pvTGqO0FsI4Z0ypdQ$ayegN0B0Fk5rkzWlsXWVjcCXLHZpQinFZ+VftD/kh2E"},
		{Scrypt, elsewhere, "$scrypt$ln=5,r=8,p=2$E6I0Rigl5LzX+v/fO2cMgQ$lbEkXnfl9P+lNJOVJNYYxFmeJf2uBXITpJ4Vf/aJVNc"},
		{PBKDF2SHA1, elsewhere, "$pbkdf2$100$1DrHuHeu9f4/B4CwllLqfQ$NJXFztKujAxnuc9WG//GbPlI24U"},
		{PBKDF2SHA256, elsewhere,
			"$pbkdf2-sha256$100$eE8ppfTeu7d2rlWKsTamtA$XLRwYu7M/KL.NInsaBnEN9FesVP.ZsTSbyzY2sK5wjA"},
		{PBKDF2SHA512, elsewhere,
			"$pbkdf2-sha512$100$EsK4V.pday0FwLgXonROCQ$fhP2NBI0yAxo2sn8WAJh0mOYo2DdKGfpEeksypL3BKYMUnhBHa7waGIN4JRlGwiDTST6Gn0kmrlsFhFj4XVzxg"},
		{PBKDF2SHA256, elsewhere, "pbkdf2_sha256$100$SjfFMM27dtP2$beenx7xMTOTY6SqpUmDa/gruR6fmhaNl8wWVioyA01E="},
		{PBKDF2SHA256, elsewhere,
			"$pbkdf2-sha256$i=150,l=64$AAECAwQFBgcICQoLDA0ODw$X0LXHBVLGJ0Bi50le3xdBeiWMNLaXnXLcsRXvTdcto7/ObnvZIE0RZafmp+BuBS2B6vNMK8U1b1256CRO2H1Iw"},
		{PBKDF2SHA512, elsewhere,
			"$pbkdf2-sha512$i=150,l=64$AAECAwQFBgcICQoLDA0ODw$WDi+eisDeTcQ0nzpIoP3lghXgHi4cfObKZ3UlldaASWvI44SdTm8Ik77e65d8csGD8k3LrokWB9XZLB82vkdJQ"},
		{PBKDF2SHA1, elsewhere, "$pbkdf2-sha1$i=150,l=20$AAECAwQFBgcICQoLDA0ODw$am1ICigMOkrgzbFo0z0cBp+morY"},
		{PBKDF2SHA1, elsewhere, "$pbkdf2-sha1$i=150$AAECAwQFBgcICQoLDA0ODw$am1ICigMOkrgzbFo0z0cBp+morY"},
		{PBKDF2SHA256, elsewhere,
			"pbkdf2_sha256$120$9fLxEeYjablRvsT7Fym95G$vDHVEQhGtrx6XzWiMUj/Gpyxs2I5f3b32R/5+5EefXA="},
		{PBKDF2SHA1, elsewhere, "pbkdf2_sha1$120$mmB3U9Xc9td7KyE357TJWh$0ZNQcfjxo0ocehwPFaXq2kEtDCk="},
		{BcryptSHA256, elsewhere, "bcrypt_sha256$$2b$04$eYd/FuKK6xlxHQUe1jv.0.RTGy/rOQpibmDWAKQi4qnJPuXtvZOTK"},
		{Bcrypt, elsewhere, "bcrypt$$2b$04$yDgeH9d0gfbTjg3OCVseoutiWws89LIaO3g8ehPEXc3deT9gdb4lK"},
		{Scrypt, elsewhere,
			"scrypt$32$DN0AzqBhVG5ZTo16XKWpXK$8$1$D2eKqvDO506tXR/AZrQAeRMfS5AUDJgw2sHwy+HnDNd+b95nQaPdlnrOBW4B+5clWG7plSJvDoRdRrv/6IJYDA=="},
		{Argon2id, elsewhere,
			"argon2$argon2id$v=19$m=64,t=1,p=2$M1RzMlRpdUg0WURLQlR1NU02SkdjbQ$/3BEz08GQcNjPnY+2zJ+QFyFcDN4oHwAg1aWPQZT6cg"},
		{SaltedSHA1, elsewhere, "{SSHA}d3boVudKZP4M+GxzrdSRLoIpHt4oWx1kkWDTmw=="},
		{SaltedSHA256, elsewhere, "{SSHA256}moMgwNdsRwusSoQ6T8jeRsrZ2RhwaU1aE664+GMSzfilFA5CMcVi8w=="},
		{SaltedSHA384, elsewhere, // by Python's hashlib
			"{SSHA384}alOWpG0MwDG/kmqEPfHvWe2vujeq2uXigDvYUvJ6QkiXBhj44MbiqHmhBeGhMSncpNOwehxV6PI="},
		{SaltedSHA512, elsewhere,
			"{SSHA512}ftK9F25cagE6BUn5Ej7GD+rlZkybVWuBw6EheHNsKYwPYa2U3dDSn4z4EMHY+9IwQdBjVk54N2VN1DbdlosuIjfm3AOfEFq3"},
		{SaltedSHA1, elsewhere, "{SSHA}KeX75rpJFWLULwD9d0qglU0a6k6vFcK4"},
		{SaltedSHA256, elsewhere, "{SSHA256}6IGyVKrYf2+BeGeLpiAbKIUwAVZVYDaooa0IRYmn4b+X0lrrXYvxvg=="},
		{SaltedSHA512, elsewhere,
			"{SSHA512}HSLL0C4XPcsHwOG8I8durO4BQEQOyvVC3PEpMnhaPh+iu7movwqpJqPlqzWWNRvR5lSwWlbcVCC+ExrHkG/6eSllrHWulZLy"},
		{BcryptSHA384, "a quite good password", "$wp$2y$04$Xn60j9UUG0YJH3ib81WbauApw.LY7Ps04R0sKIWTSUkIgnpt/bmJW"},
		{Scrypt, "a quite good password",
			"511a1b0604a8e50efbfdf1e1b5071f5b:177552a2b9fdc7affe64af928112f0de89d00bd08afbab9949bc2f72ae351775bb51ab2ccef1a06ecc7643629d1086254d8d953293f4d4d6919a7d66e63d5911"},
		{Argon2i, "a quite good password",
			"$argon2i$v=19$m=1024,p=2,t=2$+TaNi1v5N7B64FkTPJL6BQ$ZlUw1Sec7GIqnzji9vue9QwS9VaWp1JpLhoS8KT7a/4"},

		// Other lengths, and bytes that C strings cannot hold.
		{BcryptSHA256, strings.Repeat("x", 300),
			"$bcrypt-sha256$v=2,t=2b,r=4$OGh9M62YDS7zQOQdU3Mmhu$tSp5N8jsg1N31baR0yj8iqNiy7G8vjW"},
		{BcryptSHA256, "a\x00b", "$bcrypt-sha256$v=2,t=2b,r=4$.PD3FWN2noqZqwFwm4w1Xu$KuI3SApN3o28PCd3zS4Yx1gHLp6BwEW"},

		// passlib's own tests, for both versions.
		{BcryptSHA256, "", "$bcrypt-sha256$2a,5$E/e/2AOhqM5W/KJTFQzLce$F6dYSxOdAEoJZO2eoHUZWZljW/e0TXO"},
		{BcryptSHA256, "password", "$bcrypt-sha256$2a,5$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu"},
		{BcryptSHA256, "", "$bcrypt-sha256$v=2,t=2b,r=5$E/e/2AOhqM5W/KJTFQzLce$WFPIZKtDDTriqWwlmRFfHiOTeheAZWe"},
		{BcryptSHA256, "password",
			"$bcrypt-sha256$v=2,t=2b,r=5$5Hg1DKFqPE8C2aflZ5vVoe$wOK1VFFtS8IGTrGa7.h5fs0u84qyPbS"},
		{Scrypt, "test", "$scrypt$ln=8,r=8,p=1$wlhLyXmP8b53bm1NKYVQqg$mTpvG8lzuuDk+DWz8HZIB6Vum6erDuUm0As5yU+VxWA"},

		// RFC 7914 §12, the digest cut to 32 bytes, which is a valid shorter digest.
		{Scrypt, "password", "$scrypt$ln=10,r=8,p=16$TmFDbA$/bq+HJ00cgB4VucZDQHp/nxq18vII3gw53N2Y0s3MWI"},
		{Scrypt, "pleaseletmein",
			"$scrypt$ln=14,r=8,p=1$U29kaXVtQ2hsb3JpZGU$cCO9yzr9c0hGHAbNgf046/2o+7qQT44+qbVD9lRdofI"},

		// RFC 6070.
		{PBKDF2SHA1, "password", "$pbkdf2-sha1$i=4096,l=20$c2FsdA$SwB5AbdlSJq+rUnZJvch0GWkKcE"},
		{PBKDF2SHA1, "passwordPASSWORDpassword",
			"$pbkdf2-sha1$i=4096,l=25$c2FsdFNBTFRzYWx0U0FMVHNhbHRTQUxUc2FsdFNBTFRzYWx0$PS7sT+QchJuAyNg2YsDkSospGpZM8vBwOA"},

		// The reference implementation of Argon2.
		{Argon2id, "password", "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"},
		{Argon2i, "password", "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8"},

		// John the Ripper and Openwall's crypt_blowfish.
		{Bcrypt, "U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"},
		{Bcrypt, "", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"},

		// github.com/firebase/scrypt, the example of its README.
		{FirebaseScrypt, "user1password",
			"$fbscrypt$v=1,n=14,r=8,p=1,ss=Bw==,sk=jxspr8Ki0RYycVU8zykbdLGjFQ3McFUH0uiiTvC8pVMXAn210wjLNmdZJzxUECKbm0QsEmYUSDzZvpjeJ9WmXA==" +
				"$42xEC+ixf3L2lw==$lSrfV15cpx95/sZS2W9c9Kp6i/LVgQNDNC/qzrCnh1SAyZvqmZqAjTdn3aoItz+VHjoZilo78198JAdRuid5lQ=="},
	}
}

func TestVectorsOfEverySchemeVerify(t *testing.T) {
	t.Parallel()
	for _, v := range vectors() {
		t.Run(v.encoded, func(t *testing.T) {
			t.Parallel()
			h, err := parse(v.encoded)
			if err != nil {
				t.Fatal(err)
			}
			if h.scheme != v.scheme {
				t.Errorf("scheme is %s, want %s", h.scheme, v.scheme)
			}
			if got := h.String(); got != v.encoded {
				t.Errorf("written back it is %s", got)
			}
			if !h.matches([]byte(v.password)) {
				t.Error("the right password does not match")
			}
			if h.matches([]byte(v.password + "x")) {
				t.Error("a wrong password matches")
			}
			if encoded, scheme, err := Import(v.encoded); err != nil || scheme != v.scheme || encoded != v.encoded {
				t.Errorf("import: %s, %s, %v", encoded, scheme, err)
			}
		})
	}
}

func TestLikenessCostsTheSameAndMatchesNothing(t *testing.T) {
	t.Parallel()
	for _, v := range vectors() {
		h, err := parse(v.encoded)
		if err != nil {
			t.Fatal(err)
		}
		like := h.likeness()
		if like.kind() != h.kind() {
			t.Errorf("%s: the likeness has another kind: %q", v.encoded, like.kind())
		}
		if like.String() == v.encoded || like.matches([]byte(v.password)) {
			t.Errorf("%s: the likeness matches the password", v.encoded)
		}
	}
}

func TestBcryptIsThatOfTheGoProject(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"", "a", "paßword", strings.Repeat("é", 36), strings.Repeat("x", 71),
		strings.Repeat("x", 72)} {
		theirs, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		h, err := parse(string(theirs))
		if err != nil {
			t.Fatal(err)
		}
		if !h.matches([]byte(password)) {
			t.Errorf("%d bytes: their hash does not match here", len(password))
		}
		ours := bcryptHash("$2b$", 4).seal([]byte(password), bcryptDigest).String()
		if err := bcrypt.CompareHashAndPassword([]byte(ours), []byte(password)); err != nil {
			t.Errorf("%d bytes: our hash does not match there: %v", len(password), err)
		}
	}
}

func TestPlainBcryptMatchesNothingThatItCannotSeeWhole(t *testing.T) {
	t.Parallel()
	for name, passwords := range map[string][2]string{
		"cut after 72 bytes": {strings.Repeat("x", 72), strings.Repeat("x", 73)},
		"NUL repeats":        {"a", "a\x00a"},
		"NUL at the end":     {"a", "a\x00"},
	} {
		theirs, err := bcrypt.GenerateFromPassword([]byte(passwords[0]), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		h, err := parse(string(theirs))
		if err != nil {
			t.Fatal(err)
		}
		if h.matches([]byte(passwords[1])) {
			t.Errorf("%s: another password matches", name)
		}
	}
}

// A hash that would take a minute or a gigabyte is refused before any computation.
func bombs() []string {
	salt, digest := "$c29tZXNhbHQ", "$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	return []string{
		"$2b$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"$2b$21$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"$2b$17$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"bcrypt$$2b$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"bcrypt_sha256$$2b$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"$bcrypt-sha256$v=2,t=2b,r=31$5Hg1DKFqPE8C2aflZ5vVoe$wOK1VFFtS8IGTrGa7.h5fs0u84qyPbS",
		"$bcrypt-sha256$2b,31$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu",
		"$argon2id$v=19$m=4194304,t=1,p=1" + salt + digest,
		"$argon2id$v=19$m=2147483647,t=2147483647,p=1" + salt + digest,
		"$argon2id$v=19$m=4294967295,t=1,p=1" + salt + digest,
		"$argon2id$v=19$m=65536,t=33,p=1" + salt + digest,
		"$argon2i$v=19$m=8,t=2147483647,p=1" + salt + digest,
		"$argon2id$v=19$m=65536,t=1,p=255" + salt + digest,
		"argon2$argon2id$v=19$m=4194304,t=1,p=1" + salt + digest,
		"$scrypt$ln=30,r=8,p=1" + salt + digest,
		"$scrypt$ln=19,r=8,p=1" + salt + digest,
		"$scrypt$ln=1,r=2147483647,p=1" + salt + digest,
		"$scrypt$ln=1,r=1,p=2147483647" + salt + digest,
		"$scrypt$ln=1,r=2000,p=2000" + salt + digest,
		"$scrypt$ln=14,r=8,p=100" + salt + digest,
		"scrypt$1073741824$salt$8$1$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=",
		"$fbscrypt$v=1,n=30,r=8,p=1,ss=Bw==,sk=AAAAAAAAAAAAAAAAAAAAAA==$42xEC+ixf3L2lw==$lSrfV15cpx95/sZS2W9c9A==",
		"$pbkdf2-sha256$i=2147483647,l=32" + salt + digest,
		"$pbkdf2-sha256$2147483647" + salt + digest,
		"$pbkdf2-sha512$5000001" + salt + digest,
		"pbkdf2_sha256$2147483647$salt$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=",
		"$pbkdf2-sha1$i=5000001,l=64$c29tZXNhbHQ$" + strings.Repeat("Az", 43),
		"pbkdf2:sha256:5000001$salt$" + strings.Repeat("a9", 32),
		"scrypt:1073741824:8:1$salt$" + strings.Repeat("a9", 64),
		"$scrypt$ln=1048576,r=8,p=1" + salt + digest, // as Kratos writes it
		"{scrypt}$1f0801$c29tZXNhbHQ=$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=",
		"{bcrypt}$2b$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"$wp$2y$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
		"AQAAAAF/////AAAAEOiyNYPRHeffNXvP/abOm9k9WGgN96BUAvQlWVt8FN3nrS5jqyPtmCWTSr/pbQ1GYg==",
		"$pbkdf2-sha256$i=1,l=100000$c29tZXNhbHQ$" + strings.Repeat("A", 100000),
		"{SSHA}" + strings.Repeat("AAAA", 1<<20),
	}
}

func TestHashesThatCostTooMuchAreRefusedWithoutWork(t *testing.T) {
	all := bombs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, encoded := range all {
		if _, _, err := Import(encoded); err == nil {
			t.Errorf("accepted: %.60s", encoded)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("refusing them allocated %d bytes", used)
	}
}

func TestImportSaysWhyAndNothingOfTheHash(t *testing.T) {
	t.Parallel()
	for encoded, why := range map[string]string{
		"":                                 "no known scheme",
		"5f4dcc3b5aa765d61d8327deb882cf99": "MD5 by its size",
		"5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8": "SHA-1 by its size",
		"what is this": "no known scheme",
		"$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": "$2x$",
		"$2$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW":  "$2$",
		"$2b$03$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": "between 4 and 20",
		"$2b$5$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW":  "not in the form",
		"$2b$+5$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": "not in the form",
		"$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe":  "not in the form",
		// stray bits
		"$2b$05$CCCCCCCCCCCCCCCCCCCCCDE5YPO9kmyuRGyh0XouQYb4YMJKvyOeW":                                   "not in the form",
		"$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n":                                 "not in the form",
		"$argon2d$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":            "argon2d",
		"$argon2id$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":                "v=19",
		"$argon2id$v=16$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":           "v=19",
		"$argon2id$v=19$m=256,t=0,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":           "lower",
		"$argon2id$v=19$m=7,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":             "lower",
		"$argon2id$v=19$m=0256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":          "not in the form",
		"$argon2id$v=19$m=256,t=2,m=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":           "m, t and p only",
		"$argon2id$v=19$m=256,t=2,p=1,data=AAAA$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4": "m, t and p only",
		"$argon2id$v=19$m=256,t=2,p=1$c29tZQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":                "8 bytes",
		"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65":                                                  "digest",
		"$argon2id$v=19$m=256,t=2,p=1$c29t\nZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":         "not in the form",
		"$scrypt$ln=0,r=8,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":                   "lower",
		// not a power of two
		"scrypt$1000$salt$8$1$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=":                "not in the form",
		"$7$C6..../....SodiumChloride$kBGj9fHznVYFQMEn/qDCfrDevf9YDtcDdKvEqHJLV8D":         "$scrypt$",
		"$pbkdf2-sha256$0$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4":         "lower",
		"$pbkdf2-sha256$i=10,l=31$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4": "not in the form",
		"pbkdf2_sha256$10$$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=":                   "salt",
		"{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=":                                                "no salt",
		"{SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=":                                               "salt",
		"{SSHA}AAAA":                                                                       "not in the form",
		"{MD5}X03MO1qnZdYdgyfeuILPmQ==":                                                    "no salt",
		"$1$mERr$hx5rVt7rPNoS4wqbXKX7m0":                                                   "MD5-crypt",
		"$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido":                                           "SHA-crypt",
		"$P$B984JDF85jdhsu3hdjfhd83jdk":                                                    "phpass",
	} {
		_, _, err := Import(encoded)
		if err == nil {
			t.Errorf("accepted: %q", encoded)
			continue
		}
		if !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want the reason to hold %q", encoded, err, why)
		}
		for _, part := range strings.FieldsFunc(encoded, func(r rune) bool { return strings.ContainsRune("$,}", r) }) {
			if len(part) >= 8 && !strings.HasPrefix(part, "argon2") && strings.Contains(err.Error(), part) {
				t.Errorf("%q: the reason quotes it: %v", encoded, err)
			}
		}
	}
}

// RFC 9106 §5.3 uses a secret and data, which no stored hash has. This is a vector of x/crypto,
// which shows that the arguments are in the right order.
func TestArgon2ParametersMeanWhatTheySay(t *testing.T) {
	t.Parallel()
	h := argon2Hash(Argon2id, argon2idPrefix, 64, 3, 2, argon2Order)
	want := argon2.IDKey([]byte("password"), []byte("somesalt"), 3, 64, 2, 24)
	if got := h.derive([]byte("password"), []byte("somesalt"), 24); !bytes.Equal(got, want) {
		t.Errorf("got %s, want %s", hex.EncodeToString(got), hex.EncodeToString(want))
	}
}

// Every accepted hash is written back as it was read, and stays within the limits of cost.
func FuzzParse(f *testing.F) {
	number := regexp.MustCompile(`\d+`)
	for _, v := range vectors() {
		f.Add(v.encoded)
		for _, at := range number.FindAllStringIndex(v.encoded, 5) { // the parameters stand first
			for _, other := range []string{"0", "1", "x", "", "99999999999"} {
				f.Add(v.encoded[:at[0]] + other + v.encoded[at[1]:])
			}
		}
	}
	for _, encoded := range bombs() {
		if len(encoded) < maxEncoded {
			f.Add(encoded)
		}
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		h, err := parse(encoded)
		if err != nil {
			return
		}
		if got := h.String(); got != encoded {
			t.Fatalf("%q is written %q", encoded, got)
		}
		if work := costOf(t, encoded); work > 1 {
			t.Fatalf("%q costs %.2f of the limit", encoded, work)
		}
		if again := h.likeness(); again.kind() != h.kind() {
			t.Fatalf("%q: its likeness has another kind", encoded)
		}
	})
}

// costOf reads the parameters of an accepted hash in a different way than parse, and returns the
// cost as a fraction of the limit.
func costOf(t *testing.T, encoded string) (most float64) {
	known := false
	for pattern, cost := range map[string]func(n []float64) float64{
		`^(?:bcrypt\$|bcrypt_sha256\$)?\$2[aby]\$(\d+)\$|^\$bcrypt-sha256\$(?:2[ab],|v=2,t=2b,r=)(\d+)\$`: func(n []float64) float64 {
			return (n[0] + n[1]) / maxBcryptCost
		},
		`^(?:argon2)?\$argon2id?\$v=19\$[^$]*\bm=(\d+)`: func(n []float64) float64 {
			return n[0] / maxArgon2Memory
		},
		`^(?:argon2)?\$argon2id?\$v=19\$[^$]*\bm=(\d+)[^$]*\bt=(\d+)`: func(n []float64) float64 {
			return n[0] * n[1] / maxArgon2Work
		},
		`^(?:argon2)?\$argon2id?\$v=19\$[^$]*\bt=(\d+)[^$]*\bm=(\d+)`: func(n []float64) float64 {
			return n[0] * n[1] / maxArgon2Work
		},
		`^(?:argon2)?\$argon2id?\$v=19\$[^$]*\bp=(\d+)`: func(n []float64) float64 {
			return n[0] / maxArgon2Threads
		},
		`^\$wp\$2y\$(\d+)\$`:           func(n []float64) float64 { return n[0] / maxBcryptCost },
		`^[0-9a-f]{32}:[0-9a-f]{128}$`: func([]float64) float64 { return scryptCost(1<<14, 16, 1) },
		`^\$scrypt\$ln=(\d+),r=(\d+),p=(\d+)\$`: func(n []float64) float64 {
			return scryptCost(math.Exp2(n[0]), n[1], n[2])
		},
		`^scrypt\$(\d+)\$[^$]*\$(\d+)\$(\d+)\$`: func(n []float64) float64 { return scryptCost(n[0], n[1], n[2]) },
		`^\$fbscrypt\$v=1,n=(\d+),r=(\d+),p=1,`: func(n []float64) float64 {
			return scryptCost(math.Exp2(n[0]), n[1], 1)
		},
		`^\$?pbkdf2(?:[-_]sha\d+)?\$(?:i=)?(\d+)(?:,l=\d+)?\$`: func(n []float64) float64 {
			return n[0] / maxPBKDF2Work
		},
		`^\{SSHA(256|384|512)?\}`: func([]float64) float64 { return 0 },
	} {
		found := regexp.MustCompile(pattern).FindStringSubmatch(encoded)
		if found == nil {
			continue
		}
		n := make([]float64, len(found)-1)
		for i, digits := range found[1:] {
			n[i], _ = strconv.ParseFloat(digits, 64) // 0 if there is none
		}
		known, most = true, max(most, cost(n))
	}
	if !known {
		t.Fatalf("%q was accepted, but has no known form", encoded)
	}
	return most
}

func scryptCost(n, r, p float64) float64 {
	return max(128*n*r/maxScryptMemory, 128*r*p/maxScryptMemory, 128*n*r*p/maxScryptWork)
}
