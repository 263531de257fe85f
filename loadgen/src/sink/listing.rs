//! A page of a listing, as XML.

use std::fmt::Write as _;

use super::blobs::Page;

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) endpoint: &'a str,
    pub(super) container: &'a str,
    pub(super) prefix: &'a str,
    pub(super) delimiter: Option<&'a str>,
    pub(super) marker: &'a str,
    pub(super) page_max: usize,
}

/// Moments as HTTP writes them.
pub(super) fn http_date(seconds: i64) -> String {
    let moment = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    moment.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Text inside an element or attribute.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

/// The ids in the body of a Put Block List; none if it is no such list, or names blocks of the blob that is there, which
/// are not kept apart from each other here.
pub(super) fn block_ids(body: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, list) = text.split_once("<BlockList>")?;
    let mut list = list.split_once("</BlockList>")?.0.trim_start();
    let mut ids = Vec::new();
    while !list.is_empty() {
        let (kind, rest) = list.strip_prefix('<')?.split_once('>')?;
        if kind != "Latest" && kind != "Uncommitted" {
            return None;
        }
        let (id, rest) = rest.split_once("</")?;
        ids.push(id.trim().to_owned());
        list = rest.strip_prefix(kind)?.strip_prefix('>')?.trim_start();
    }
    Some(ids)
}

pub(super) fn xml(asked: &Asked<'_>, page: &Page) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?>");
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing into a string does not fail.
        let _ = out.write_fmt(text);
    };
    let (endpoint, container) = (escape(asked.endpoint), escape(asked.container));
    line(format_args!("<EnumerationResults ServiceEndpoint=\"{endpoint}\" ContainerName=\"{container}\">"));
    line(format_args!("<Prefix>{}</Prefix>", escape(asked.prefix)));
    if !asked.marker.is_empty() {
        line(format_args!("<Marker>{}</Marker>", escape(asked.marker)));
    }
    line(format_args!("<MaxResults>{}</MaxResults>", asked.page_max));
    if let Some(delimiter) = asked.delimiter {
        line(format_args!("<Delimiter>{}</Delimiter>", escape(delimiter)));
    }
    line(format_args!("<Blobs>"));
    for (name, blob) in &page.blobs {
        line(format_args!(
            "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag>\
             <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type>\
             <BlobType>BlockBlob</BlobType></Properties></Blob>",
            escape(name),
            http_date(blob.modified_seconds),
            escape(&blob.etag()),
            blob.bytes
        ));
    }
    for prefix in &page.prefixes {
        line(format_args!("<BlobPrefix><Name>{}</Name></BlobPrefix>", escape(prefix)));
    }
    let next = page.next.as_deref().map(escape).unwrap_or_default();
    line(format_args!("</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_odd_names_are_written_as_the_formats_want() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(escape("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
        let page = Page { prefixes: vec!["x&y/".into()], next: Some("n".into()), ..Page::default() };
        let text = xml(&Asked { container: "c", page_max: 7, ..Asked::default() }, &page);
        assert!(text.contains("<BlobPrefix><Name>x&amp;y/</Name></BlobPrefix>"), "{text}");
        assert!(text.ends_with("<NextMarker>n</NextMarker></EnumerationResults>"), "{text}");
    }
}
