package auth

import (
	"errors"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/testenv"
)

// The session checks of concurrent requests go to PostgreSQL together. Each must get its own
// answer, whatever the others ask.
func TestEachQuestionIsAnsweredForItself(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		type question struct {
			who  subject
			want error
		}
		var questions []question
		for i := range 8 {
			name, tokens := env.newUser(t)
			live := env.caller(t, tokens)
			ended := env.caller(t, env.signIn(t, name))
			testenv.Must(t, env.endSession(t.Context(), ended.User.ID, ended.SessionID, ReasonLogout))
			questions = append(questions,
				question{subject{live.User.ID, live.SessionID}, nil},
				question{subject{ended.User.ID, ended.SessionID}, ErrSessionRevoked},
				question{subject{uuid.New(), live.SessionID}, ErrUserNotFound})
			if i%2 == 0 {
				second := env.caller(t, env.signIn(t, name))
				questions = append(questions, question{subject{second.User.ID, second.SessionID}, nil})
			}
		}
		var group sync.WaitGroup
		for range 20 {
			for _, q := range questions {
				group.Go(func() {
					st, err := env.states.of(t.Context(), q.who.userID, q.who.sid)
					if err == nil && st.user.ID != q.who.userID {
						t.Errorf("asked about user %s, got %s", q.who.userID, st.user.ID)
					}
					if err == nil && st.revoked {
						err = ErrSessionRevoked
					}
					if !errors.Is(err, q.want) {
						t.Errorf("the answer is %v, want %v", err, q.want)
					}
				})
			}
		}
		group.Wait()
	})
}
