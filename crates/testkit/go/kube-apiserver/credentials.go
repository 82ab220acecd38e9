package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/embed"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"
)

// credentials of one administrator, and the key that signs the tokens of service accounts.
type credentials struct {
	token     string
	tokenFile string
	keyFile   string
}

func newCredentials(dir string) (*credentials, error) {
	random := make([]byte, 32)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	access := &credentials{
		token:     hex.EncodeToString(random),
		tokenFile: filepath.Join(dir, "tokens.csv"),
		keyFile:   filepath.Join(dir, "service-account.key"),
	}
	line := access.token + ",admin,admin,system:masters\n"
	if err := os.WriteFile(access.tokenFile, []byte(line), 0o600); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pem, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, err
	}
	return access, os.WriteFile(access.keyFile, pem, 0o600)
}

func (access *credentials) flags(dir string, etcd *embed.Etcd) []string {
	return []string{
		"--etcd-servers=" + etcd.Config().ListenClientUrls[0].String(),
		"--bind-address=127.0.0.1",
		// The default is the address of the default route, which a network namespace may lack.
		"--advertise-address=127.0.0.1",
		// Nobody looks at the endpoints of Service kubernetes, where loopback would be refused.
		"--endpoint-reconciler-type=none",
		"--cert-dir=" + filepath.Join(dir, "tls"),
		"--token-auth-file=" + access.tokenFile,
		"--authorization-mode=Node,RBAC",
		"--allow-privileged=true",
		"--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + access.keyFile,
		"--service-account-signing-key-file=" + access.keyFile,
	}
}

func (access *credentials) clientConfig(server, certificate string) *clientcmdapi.Config {
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: server, CertificateAuthority: certificate}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: access.token}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin", Namespace: "default"}
	config.CurrentContext = "test"
	return config
}
