//! The real Kubernetes API server as a test tool: one program that runs
//! kube-apiserver and etcd, built from the Go module in `go/kube-apiserver`.
//!
//! The first [`program`] takes minutes (140 MB of Go), later ones find it in
//! the cache. Nothing here needs a feature, so that a task can warm the cache
//! before tests with deadlines want it.

use std::path::PathBuf;

use crate::{cache::CacheError, go_module::GoModule};

const MODULE: GoModule = GoModule {
    name: "kube-apiserver",
    sources: &[
        ("credentials.go", include_str!("../go/kube-apiserver/credentials.go")),
        ("go.mod", include_str!("../go/kube-apiserver/go.mod")),
        ("go.sum", include_str!("../go/kube-apiserver/go.sum")),
        ("main.go", include_str!("../go/kube-apiserver/main.go")),
    ],
    package: ".",
    check: &["-h"],
};

/// The program, built if the cache has none; its source says how to run it.
///
/// # Errors
/// When there is no Go or the module does not build, with what `go` said.
pub fn program() -> Result<PathBuf, CacheError> {
    MODULE.program()
}
