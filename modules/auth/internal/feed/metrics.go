package feed

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/metric"
)

func (f *Feed) measure(to prometheus.Registerer) error {
	f.answers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "authctl_revocation_answers_total",
		Help: "Answers to followers of /oauth2/revocations: news, nothing, a page of a snapshot, gone (the " +
			"cursor is of another database), unavailable (the database does not answer) or crowded (too many " +
			"followers).",
	}, []string{"kind"})
	return metric.Register(to, "the metrics of the feed", f.answers,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_revocation_followers",
			Help: "Followers of /oauth2/revocations that are waiting at this process.",
		}, func() float64 { return float64(f.Followers()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_revocation_lag_seconds",
			Help: "How long ago this process last managed to look for what has ended, while somebody follows; else 0.",
		}, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			switch {
			case !f.reading:
				return 0
			case !f.known: // not once since the first follower came
				return time.Since(f.begun).Seconds()
			}
			return time.Since(f.lookedAt).Seconds()
		}))
}
