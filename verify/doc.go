// Package verify checks the access tokens of authctl in other services, and knows within a
// second which of them have ended before their time.
//
//	v, err := verify.New(verify.Config{
//		Issuer: "https://auth.example.com", Audience: "orders",
//		Client: verify.Client{ID: "orders", Secret: secret},
//	})
//	…
//	http.Handle("/orders", v.Middleware(orders))
//
// # What is accepted
//
// Exactly what authctl itself accepts, and nothing else: a compact JWS of at most 8 KiB in its
// one canonical form, with the header members alg, kid and typ (at+jwt), a key that the issuer
// publishes and has not revoked, used with the one algorithm it was made for (ES256, EdDSA,
// RS256), and every claim of [Claims] once and of the right type. HS256 has no published keys
// and is not supported.
//
// # What has ended
//
// With the credentials of a client, a [Verifier] follows the issuer's feed of revocations: the
// whole of it at start, then every end within a second of its commit. It remembers an end until
// the last token that it concerns has expired by both clocks of the issuer. [Verifier.Lag] tells
// how old its knowledge is; beyond [Config.MaxLag] the [Policy] decides.
//
// It asks by long polling and not by server-sent events: each answer is whole or it is an
// error, proxies that buffer do no harm, a dead server is noticed by the clock of one request,
// and the time from question to answer bounds how old the answer can be. An idle verifier asks
// once in a third of MaxLag.
//
// Without credentials it checks signatures and claims alone. A service that
// receives the events of authctl from Kafka hands each to [Verifier.Apply].
//
// # What it runs
//
// [New] starts one goroutine that keeps the keys and, with credentials, one that follows the
// feed. They hold two connections to the issuer, and [Verifier.Close] ends all of it. A
// Verifier that is never closed goes on until the process ends.
//
// The clock of the machine need not be right. Knowledge is counted by the monotonic clock, and
// with the feed the times of tokens are judged within what is known of the issuer's two clocks, that of
// the server and that of its database.
package verify
