package main

import (
	"flag"
	"strings"

	"hsm-kms-parts/report"
)

func store(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	url := flags.String("etcd", "", "`url` of etcd, for example http://127.0.0.1:2379")
	count := flags.Int("count", 20, "`number` of secrets")
	return func(r *report.Report) {
		etcd := needEtcd(r, *url)
		r.Reach(settings.socket)
		stack := mustLoad(r, *settings)
		stored := write(r, stack, *count)
		r.Check("read-back", true, readFields(r, stack, stored))
		checkOtherKeyRefused(r, stack, stored)
		for name, value := range stored {
			if err := etcd.put(secret{name}.key(), value); err != nil {
				r.Stop(report.NotReachable, "put", err)
			}
		}
		r.Check("put", true, report.Fields{"count": len(stored)})
		stack.close()
		checkFreshStack(r, *settings, stored)
		end(r)
	}
}

func verify(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	url := flags.String("etcd", "", "`url` of etcd, for example http://127.0.0.1:2379")
	count := flags.Int("count", 0, "`number` of secrets that must be there; 0 takes any but none")
	return func(r *report.Report) {
		etcd := needEtcd(r, *url)
		r.Reach(settings.socket)
		found, err := etcd.list(etcdFolder)
		if err != nil {
			r.Stop(report.NotReachable, "list", err)
		}
		stored := map[string][]byte{}
		for _, entry := range found {
			stored[strings.TrimPrefix(string(entry.Key), etcdFolder)] = entry.Value
		}
		complete := len(stored) > 0 && (*count == 0 || len(stored) == *count)
		if !r.Check("list", complete, report.Fields{"count": len(stored)}) {
			end(r)
		}
		checkFreshStack(r, *settings, stored)
		end(r)
	}
}

// needEtcd makes sure that an etcd answers before anything is asked of it.
func needEtcd(r *report.Report, url string) *etcd {
	if url == "" {
		report.Usage("--etcd is missing")
	}
	etcd := newEtcd(url)
	if _, err := etcd.list("/no-such-folder/"); err != nil {
		r.Stop(report.NotReachable, "etcd", err)
	}
	return etcd
}
