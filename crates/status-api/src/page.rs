//! The status page: one document with its style and script in it, and a policy
//! that lets nothing else run.

use std::{fmt::Write as _, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

/// The page as it is served.
pub(crate) static PAGE: LazyLock<Page> = LazyLock::new(Page::assemble);

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) html: String,
    /// Its `Content-Security-Policy`.
    pub(crate) policy: String,
}

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

impl Page {
    fn assemble() -> Self {
        let html = HTML.replacen("{{style}}", STYLE, 1).replacen("{{script}}", SCRIPT, 1);
        let mut policy = String::from(
            "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        );
        for (directive, content) in [("script-src", SCRIPT), ("style-src", STYLE)] {
            let hash = STANDARD.encode(Sha256::digest(content));
            // Writing to a string cannot fail.
            let _ = write!(policy, "; {directive} 'sha256-{hash}'");
        }
        Self { html, policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        let Page { html, policy } = Page::assemble();
        assert!(!html.contains("{{"), "a placeholder is left");
        for outside in ["http://", "https://", "src=", "@import", "url(", "innerHTML", "eval("] {
            let uses = html.matches(outside).count();
            // The name space of the icon is no address to load.
            let allowed = usize::from(outside == "http://");
            assert!(uses <= allowed, "{outside} is in the page {uses} times");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
