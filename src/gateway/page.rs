//! The status page of the admin port: one file with everything in it, and the runbook that it quotes.
//!
//! Who opens it may be in a network without a way out, so it asks nothing of any other place. Its policy admits only the
//! one script and the one style that were compiled in, by their digests: text that got into the page by whatever way could
//! neither run nor look like the gateway's own words.

use std::sync::LazyLock;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;

const PAGE: &str = include_str!("status.html");
const RUNBOOK: &str = include_str!("../../docs/RUNBOOK.md");

static POLICY: LazyLock<String> = LazyLock::new(|| policy(PAGE));

/// What this part answers.
pub fn routes() -> Router {
    Router::new().route("/", get(page)).route("/status", get(page)).route("/runbook.md", get(runbook))
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A new version brings its own page at once.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

async fn runbook() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/markdown; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, RUNBOOK).into_response()
}

/// The policy for a page with one script and one style.
fn policy(page: &str) -> String {
    let digest = |element: &str| {
        let inside = inside(page, element).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, inside.as_bytes());
        base64::engine::general_purpose::STANDARD.encode(digest)
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        digest("script"),
        digest("style")
    )
}

/// What stands between an element's tags.
fn inside<'a>(page: &'a str, element: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("<{element}>"))?;
    Some(rest.split_once(&format!("</{element}>"))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_admits_the_one_script_and_the_one_style_and_nothing_from_elsewhere() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "one {element}, without attributes");
            assert!(inside(PAGE, element).is_some_and(|text| text.len() > 1000));
        }
        assert!(!POLICY.contains("unsafe") && !POLICY.contains('*') && !POLICY.contains("http"), "{}", *POLICY);
        let other = policy(&PAGE.replace("</script>", " </script>"));
        assert_ne!(other, *POLICY, "a changed script has another digest");
        // Known from sha256sum: the digest of nothing.
        assert!(policy("").contains("script-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"));
    }

    #[test]
    fn the_page_makes_no_markup_of_text_and_asks_no_other_place() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "new Function",
            " style=\"",
            " onclick",
            "src=\"http",
            "url(",
            "@import",
        ] {
            assert!(!PAGE.contains(word), "{word}");
        }
        let places = PAGE.matches("http://").count() + PAGE.matches("https://").count();
        // The name of SVG's namespace is an address that nobody asks.
        assert_eq!(places, PAGE.matches("http://www.w3.org/2000/svg").count());
    }

    #[test]
    fn the_page_knows_every_condition_of_a_disk_by_its_word() {
        for condition in crate::wire::Condition::ALL {
            assert!(PAGE.contains(condition.as_str()), "{}", condition.as_str());
        }
    }
}
