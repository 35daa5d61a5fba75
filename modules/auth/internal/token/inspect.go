package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Decoded is a token taken apart and not verified: nothing in it is to be believed.
type Decoded struct {
	Header  map[string]any // numbers as json.Number
	Claims  map[string]any // likewise; nil when the payload is not a JSON object
	Payload []byte         // as it is in the token; anything at all in a bare JWS
}

// Inspect decodes a token for a person to look at, without verifying it. It takes the header
// members and algorithms that [Verifier.Verify] refuses, but no broken encoding, and no name
// twice, of which one could be shown and another meant. The error is a [*Refusal].
func Inspect(token string) (Decoded, error) {
	c, err := split(token)
	if err != nil {
		return Decoded{}, &Refusal{Reason: ErrMalformed, Detail: err.Error()}
	}
	d := Decoded{Payload: c.payload}
	if d.Header, err = object(c.header); err != nil {
		return Decoded{}, &Refusal{Reason: ErrMalformed, Detail: "header: " + err.Error()}
	}
	d.Claims, _ = object(c.payload) // a bare JWS carries what it likes
	return d, nil
}

// object reads any JSON object, each name once.
func object(data []byte) (map[string]any, error) {
	if err := readObject(data, func(_ string, v value) error { return v.skip() }); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var all map[string]any
	if err := dec.Decode(&all); err != nil {
		return nil, jsonProblem(err)
	}
	return all, nil
}

// VerifyJWS checks the signature of a bare JWS against the keys and returns its payload; it
// has no rules about claims. A kid in the header must name a key of the set; without one,
// each key of the algorithm is tried. Members that change how a JWS is read (crit, b64, zip)
// are refused, and those that name a key of the sender's choice count for nothing. The error
// is a [*Refusal].
func VerifyJWS(token string, keys Set) ([]byte, error) {
	c, err := split(token)
	if err != nil {
		return nil, &Refusal{Reason: ErrMalformed, Detail: err.Error()}
	}
	var alg, kid string
	err = readObject(c.header, func(name string, v value) (err error) {
		switch name {
		case "alg":
			alg, err = v.text()
		case "kid":
			kid, err = v.text()
		case "crit", "b64", "zip", "enc":
			err = errors.New("not accepted")
		default:
			return v.skip()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, &Refusal{Reason: ErrMalformed, Detail: "header: " + err.Error()}
	}
	if method(alg) == nil {
		return nil, &Refusal{Reason: ErrAlgorithm, Detail: "not one that is used here"}
	}
	var candidates []PublicKey
	for _, p := range keys.keys {
		if kid == "" || p.kid == kid {
			candidates = append(candidates, p)
		}
	}
	if len(candidates) == 0 {
		return nil, &Refusal{Reason: ErrUnknownKey}
	}
	fits := false
	for _, p := range candidates {
		if p.algorithm != alg {
			continue
		}
		fits = true
		if p.verify(c.signed, c.signature) {
			return c.payload, nil
		}
	}
	if !fits {
		return nil, &Refusal{Reason: ErrAlgorithm, Detail: "no key is for " + alg}
	}
	return nil, &Refusal{Reason: ErrSignature}
}
