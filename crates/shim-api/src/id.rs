//! Identifiers that arrive from a socket, checked before anything uses them
//! as a path, a label key or a part of a URL.

use std::fmt;

use thiserror::Error;

/// An identifier that does not have the form its owner promises.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {value:?} is not valid: {reason}")]
pub struct InvalidId {
    /// What the value was meant to be, such as `container id`.
    pub what: &'static str,
    /// The value, cut to 80 characters.
    pub value: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self { what, value: value.chars().take(80).collect(), reason }
    }
}

/// Id of a container in containerd: 1 to 76 characters, alphanumerics joined
/// by single `.`, `_` or `-` (containerd `pkg/identifiers`). CRI uses 64 hex
/// digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(Box<str>);

impl ContainerId {
    /// Checks and wraps an id.
    ///
    /// # Errors
    /// When the id breaks containerd's rule, so also when it could leave a
    /// directory as a path component.
    pub fn new(id: &str) -> Result<Self, InvalidId> {
        let fail = |reason| Err(InvalidId::new("container id", id, reason));
        if id.is_empty() {
            return fail("it is empty");
        }
        if id.len() > 76 {
            return fail("it is longer than 76 characters");
        }
        if !id
            .split(['.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            return fail("it must be alphanumerics joined by single '.', '_' or '-'");
        }
        Ok(Self(id.into()))
    }

    /// Reads the id out of a `containerID` of a pod status,
    /// `containerd://<id>`. `None` for a container that never started (empty)
    /// and for one of another runtime.
    pub fn from_pod_status(container_id: &str) -> Option<Self> {
        Self::new(container_id.strip_prefix("containerd://")?).ok()
    }

    /// The bare id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod by namespace and name. Two pods can bear the same name one after the
/// other; only a [`ContainerId`] tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    namespace: Box<str>,
    name: Box<str>,
}

impl PodRef {
    /// Checks and wraps a namespace (RFC 1123 label) and a pod name (RFC 1123
    /// subdomain).
    ///
    /// # Errors
    /// When either breaks the rule of the Kubernetes API.
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidId> {
        dns_label("pod namespace", namespace)?;
        dns_subdomain("pod name", name)?;
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PodRef {
    /// `namespace/name`, the form Kubernetes tools print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A container of a pod by name: what a status label, a metric series and a
/// resize are about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerRef {
    /// The pod.
    pub pod: PodRef,
    name: Box<str>,
}

impl ContainerRef {
    /// Checks and wraps a container name (RFC 1123 label).
    ///
    /// # Errors
    /// When the name breaks the rule of the Kubernetes API.
    pub fn new(pod: PodRef, name: &str) -> Result<Self, InvalidId> {
        dns_label("container name", name)?;
        Ok(Self { pod, name: name.into() })
    }

    /// The container's name within its pod.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ContainerRef {
    /// `namespace/pod/container`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.name)
    }
}

/// One shim process, by the file name of its socket without `.sock`.
///
/// Usually 64 hex digits, the digest of the containerd shim address; the only
/// rule checked is that it is one plain path component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShimId(Box<str>);

impl ShimId {
    /// Reads the id out of a socket's file name. `None` for a name that is not
    /// a shim socket's.
    pub fn from_file_name(file_name: &str) -> Option<Self> {
        let id = file_name.strip_suffix(".sock")?;
        let plain = !id.is_empty() && !id.starts_with('.') && !id.contains('/');
        plain.then(|| Self(id.into()))
    }

    /// The file name of the socket.
    pub fn file_name(&self) -> String {
        format!("{}.sock", self.0)
    }

    /// The id without `.sock`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn dns_label(what: &'static str, value: &str) -> Result<(), InvalidId> {
    let fail = |reason| Err(InvalidId::new(what, value, reason));
    if value.is_empty() {
        return fail("it is empty");
    }
    if value.len() > 63 {
        return fail("it is longer than 63 characters");
    }
    if !value.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return fail("only lower-case letters, digits and '-' are allowed");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return fail("it must start and end with a letter or digit");
    }
    Ok(())
}

fn dns_subdomain(what: &'static str, value: &str) -> Result<(), InvalidId> {
    if value.len() > 253 {
        return Err(InvalidId::new(what, value, "it is longer than 253 characters"));
    }
    // A part may be up to 253 long here, unlike a DNS label on the wire.
    let part_ok = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if value.split('.').all(part_ok) {
        Ok(())
    } else {
        Err(InvalidId::new(what, value, "it must be an RFC 1123 subdomain"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_never_leave_a_directory() {
        for good in ["a", "0123456789abcdef", "a.b-c_d"] {
            assert_eq!(ContainerId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "../x", "a/b", "a..b", "-a", "a-", "a\0b", &"a".repeat(77)] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn container_id_of_a_pod_status() {
        assert_eq!(ContainerId::from_pod_status("containerd://ab").unwrap().as_str(), "ab");
        for none in ["", "ab", "cri-o://ab", "containerd://", "containerd://../a"] {
            assert_eq!(ContainerId::from_pod_status(none), None, "{none:?}");
        }
    }

    #[test]
    fn pod_and_container_names_follow_rfc_1123() {
        let pod = PodRef::new("default", "web-0.example").unwrap();
        assert_eq!(pod.to_string(), "default/web-0.example");
        assert_eq!(
            ContainerRef::new(pod.clone(), "app").unwrap().to_string(),
            "default/web-0.example/app"
        );
        for (namespace, name) in
            [("", "a"), ("a", ""), ("A", "a"), ("a", "a..b"), ("a.b", "a"), ("a", "../a")]
        {
            assert!(PodRef::new(namespace, name).is_err(), "{namespace}/{name}");
        }
        assert!(ContainerRef::new(pod, "App").is_err());
    }

    #[test]
    fn an_error_names_what_and_value() {
        assert_eq!(
            PodRef::new("x y", "a").unwrap_err().to_string(),
            r#"pod namespace "x y" is not valid: only lower-case letters, digits and '-' are allowed"#
        );
    }

    #[test]
    fn shim_ids_are_plain_file_names() {
        assert_eq!(ShimId::from_file_name("abc.sock").unwrap().file_name(), "abc.sock");
        for none in ["abc", ".sock", "..sock", "a/b.sock", "node.socket"] {
            assert_eq!(ShimId::from_file_name(none), None, "{none:?}");
        }
    }
}
