// Package metric registers the metrics of the other packages.
package metric

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Register registers collectors, which together are what. Without a registry it does nothing.
func Register(registry prometheus.Registerer, what string, all ...prometheus.Collector) error {
	if registry == nil {
		return nil
	}
	for _, one := range all {
		if err := registry.Register(one); err != nil {
			return fmt.Errorf("register %s: %w", what, err)
		}
	}
	return nil
}
