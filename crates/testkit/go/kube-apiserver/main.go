// Command kube-apiserver runs a Kubernetes API server and its etcd in one
// process, for tests: nothing else of a control plane, one listener on
// loopback, everything on disk in a directory that goes when it ends.
//
// Once it serves, it prints one line of JSON to standard output:
//
//	{"kubeconfig": "/path/of/a/file/for/an/administrator"}
//
// and serves until its standard input ends, so that it can't outlive whoever
// started it, or until SIGTERM. Arguments after -- are flags of the real
// kube-apiserver and win over those set here.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

const startDeadline = 2 * time.Minute

func main() {
	port := flag.Int("port", 0, "port on 127.0.0.1; 0 takes a free one")
	flag.Parse()
	// Whoever reads the log may be gone before the directory is.
	signal.Ignore(syscall.SIGPIPE)
	dir, err := os.MkdirTemp("", "zeropod-kube-apiserver-")
	if err == nil {
		serving := make(chan struct{})
		go stopAtTheEnd(dir, serving)
		err = run(context.Background(), dir, *port, flag.Args(), serving)
		remove(dir)
	}
	fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
	os.Exit(1)
}

// stopAtTheEnd of standard input or at a signal ends the process, without the
// long farewell of an API server that others may still need. One that is still
// starting goes on until it serves, or it would write files after they were removed.
func stopAtTheEnd(dir string, serving <-chan struct{}) {
	signals, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	<-signals.Done()
	<-serving
	remove(dir)
	os.Exit(0)
}

// remove tries until it wins: etcd may still be writing.
func remove(dir string) {
	for range 100 {
		if os.RemoveAll(dir) == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func run(ctx context.Context, dir string, port int, flags []string, serving chan<- struct{}) error {
	etcd, err := startEtcd(ctx, filepath.Join(dir, "etcd"))
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer etcd.Close()
	listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	access, err := newCredentials(dir)
	if err != nil {
		return fmt.Errorf("make credentials: %w", err)
	}
	opts := options.NewServerRunOptions()
	if err := setFlags(opts, append(access.flags(dir, etcd), flags...)); err != nil {
		return err
	}
	// A listener rather than a number: a port that was free a moment ago may be taken by now.
	opts.SecureServing.Listener = listener
	opts.SecureServing.BindPort = listener.Addr().(*net.TCPAddr).Port
	completed, err := opts.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return utilerrors.NewAggregate(errs)
	}
	served := make(chan error, 1)
	go func() { served <- app.Run(ctx, completed) }()

	config := access.clientConfig("https://"+listener.Addr().String(), opts.SecureServing.ServerCert.CertKey.CertFile)
	if err := waitReady(ctx, config, served); err != nil {
		return err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"kubeconfig": kubeconfig}); err != nil {
		return err
	}
	close(serving)
	return <-served
}

// startEtcd serves on a socket beside dir, without the fsyncs that only matter after a power cut.
func startEtcd(ctx context.Context, dir string) (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = dir
	config.LogLevel = "error"
	config.UnsafeNoFsync = true
	client := url.URL{Scheme: "unix", Path: dir + ".client"}
	config.ListenClientUrls = []url.URL{client}
	// There are no peers, but etcd insists on a port for them, and on advertising one.
	nobody := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.AdvertiseClientUrls, config.ListenPeerUrls, config.AdvertisePeerUrls = nobody, nobody, nobody
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, err
	case <-ctx.Done():
		etcd.Close()
		return nil, ctx.Err()
	}
}

func setFlags(opts *options.ServerRunOptions, args []string) error {
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range opts.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	return opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set()
}

func waitReady(ctx context.Context, config *clientcmdapi.Config, served <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	for {
		err := ready(ctx, config)
		if err == nil {
			return nil
		}
		select {
		case failure := <-served:
			return fmt.Errorf("ended before it was ready: %w", failure)
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w", startDeadline, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, config *clientcmdapi.Config) error {
	restConfig, err := clientcmd.NewDefaultClientConfig(*config, nil).ClientConfig()
	if err != nil {
		return err
	}
	restConfig.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return err
	}
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}
