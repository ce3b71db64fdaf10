// Command coredns is CoreDNS with the plugins that kubeadm's Corefile names, and no others: the whole set takes
// minutes to compile and none of it is used on a test cluster.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"

	"github.com/coredns/coredns/coremain"
)

func main() {
	// The order in which plugins see a query; dnsserver's own list names plugins that are not linked in, which is
	// harmless, so it is left alone and only asserted to be there.
	if len(dnsserver.Directives) == 0 {
		panic("coredns: no directives")
	}
	coremain.Run()
}
