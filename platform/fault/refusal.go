package fault

// Refusal says why a value is not acceptable: a stable code and words for a person. It holds
// nothing of the value.
type Refusal struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Refuse makes a refusal.
func Refuse(code, detail string) *Refusal { return &Refusal{Code: code, Detail: detail} }

func (r *Refusal) Error() string { return r.Code + ": " + r.Detail }
