// Package token signs and verifies access tokens: compact JWS (RFC 7515) that carry JWT
// claims (RFC 7519) in the profile of RFC 9068, with the cautions of RFC 8725.
//
// A token is three base64url segments:
//
//	{"alg":"ES256","kid":"…","typ":"at+jwt"} . {"iss":…,"sub":…,…} . signature
//
// [Key.Sign] makes one and [Verifier.Verify] is the only way to accept one. JWT libraries
// accept too much (golang-jwt's parser takes a token without exp, an unknown crit, any typ, line
// breaks in the signature), so this package reads the text by the strictest rules and leaves
// golang-jwt the signatures.
//
// What Verify accepts:
//   - the text: at most 8 KiB, exactly two dots, nothing but base64url in its one canonical
//     form. Checked before anything is decoded.
//   - the header: alg, kid and typ, each once, and nothing else, so that no token brings its
//     own key (jku, x5u, x5c, jwk) or changes how it is read (crit, b64, zip).
//   - the key: known by its kid here and now, used with the one algorithm it was made for.
//   - the claims: all that [Claims] names, each once, with exact types. Names are compared
//     with case. Unknown claims are ignored, as RFC 7519 §4 asks: a later release may add one.
//   - the times: not valid from exp on, so that a denylist may forget an entry at exp; iat and nbf
//     may be ahead by the leeway, which is for clocks that disagree.
//
// Private keys rest sealed ([Key.Seal], [Open]) under a key derived from the secret of the
// service; public ones are published as a JWKS ([MarshalJWKS], RFC 7517).
package token
