//go:build tools

// Package tools names the programs of zeropod that are built as test tools, so
// that their versions are pinned by go.mod and go.sum.
package tools

import _ "github.com/ctrox/zeropod/cmd/shim"
