//! Questions to the hub about many twins at once, page by page.
//!
//! The hub answers from an index that may lag behind the twins by seconds to minutes, so whoever needs the truth about one twin reads
//! that twin. Questions are rare and dear (20 a minute on the smallest hubs), so nothing on a site asks any: this is
//! for `quorate fleet`.

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Error, rest::RestHub};

/// A page of a thousand projected rows stays well below this.
const PAGE_MAX_BYTES: usize = 8 * 1024 * 1024;
const CONTINUATION: HeaderName = HeaderName::from_static("x-ms-continuation");
const COUNT: HeaderName = HeaderName::from_static("x-ms-max-item-count");

/// One page of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The rows, each as the question's projection has it.
    pub rows: Vec<Value>,
    /// What to hand in with the same question for the next page; `None` after the last.
    pub next: Option<String>,
}

impl RestHub {
    /// Asks for one page of at most `most` (1 to 1000) rows. The right needed is ServiceConnect, or `twins/read`.
    ///
    /// # Errors
    /// [`Error`], as for any call.
    pub async fn query(&self, question: &str, after: Option<&str>, most: u16) -> Result<Page, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(COUNT, HeaderValue::from(most.clamp(1, 1000)));
        if let Some(after) = after {
            let after = HeaderValue::from_str(after)
                .map_err(|_| Error::NotTheHub("its continuation does not fit into a header".into()))?;
            headers.insert(CONTINUATION, after);
        }
        let body = json!({ "query": question }).to_string();
        let path = "/devices/query";
        let (headers, body) =
            self.ask(Method::POST, path, headers, Some(body), "the query", PAGE_MAX_BYTES).await?;
        let rows = serde_json::from_slice(&body)
            .map_err(|_| Error::NotTheHub("200 without a list of rows".into()))?;
        let next = headers.get(CONTINUATION).and_then(|text| text.to_str().ok());
        Ok(Page { rows, next: next.filter(|text| !text.is_empty()).map(str::to_owned) })
    }
}
