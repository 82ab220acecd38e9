// Command helm-template prints what Helm makes of a chart, by Helm's own loader,
// schema check and engine: helm-template KUBE_VERSION CHART [VALUES...], where
// the values files are read in their order. Definitions of resources come first,
// the rest in the order in which Helm installs them.
// With -h it only says so.
package main

import (
	"fmt"
	"os"
	"path"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Println("helm-template KUBE_VERSION CHART [VALUES...]")
		return
	}
	if err := render(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func render(version, dir string, files []string) error {
	chart, err := loader.Load(dir)
	if err != nil {
		return err
	}
	values := chartutil.Values{}
	for _, file := range files {
		more, err := chartutil.ReadValuesFile(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		values = chartutil.CoalesceTables(more, values)
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	parsed, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		return err
	}
	capabilities.KubeVersion = *parsed
	release := chartutil.ReleaseOptions{Name: "zeropod", Namespace: "default", IsInstall: true, Revision: 1}
	all, err := chartutil.ToRenderValues(chart, values, release, capabilities)
	if err != nil {
		return err
	}
	rendered, err := engine.Render(chart, all)
	if err != nil {
		return err
	}
	for _, crd := range chart.CRDObjects() {
		fmt.Printf("---\n%s\n", crd.File.Data)
	}
	for name, text := range rendered {
		if path.Base(name) == "NOTES.txt" {
			delete(rendered, name)
			for _, line := range strings.Split(text, "\n") {
				fmt.Println("# " + line)
			}
		}
	}
	_, manifests, err := releaseutil.SortManifests(rendered, capabilities.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return err
	}
	for _, manifest := range manifests {
		fmt.Printf("---\n# Source: %s\n%s\n", manifest.Name, manifest.Content)
	}
	return nil
}
