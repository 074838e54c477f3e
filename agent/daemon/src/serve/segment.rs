//! What a path names, an account or an id, and what its query asks for. What cannot be read is answered as every other error is.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::routes::Fault;

/// The one part of a path that varies.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            Err(error) => Err(Fault::invalid(format!("the path names nothing: {}", error.body_text()))),
        }
    }
}

/// What follows the `?`.
pub(super) struct Wanted<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Wanted<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(wanted)) => Ok(Self(wanted)),
            Err(error) => Err(Fault::invalid(format!("the query is not what is asked for: {}", error.body_text()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::Response;
    use axum::routing::get;
    use http_body_util::BodyExt as _;
    use hyper::Request;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use serde_json::Value;

    use super::super::changes::Since;
    use super::*;

    async fn answer(uri: &str) -> (StatusCode, Vec<u8>) {
        let router = Router::new()
            .route("/v1/accounts/{name}", get(|Segment(name): Segment| async { name }))
            .route("/v1/changes", get(|_: Wanted<Since>| async {}));
        let request = Request::builder().uri(uri).body(axum::body::Body::empty()).unwrap();
        let response: Response = TowerToHyperService::new(router).call(request).await.unwrap();
        (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_path_or_query_that_cannot_be_read_is_an_error_as_every_other() {
        for uri in ["/v1/accounts/%ff", "/v1/changes?since=abc"] {
            let (status, body) = answer(uri).await;
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::BAD_REQUEST, Some("invalid-request")));
            assert!(body["error"]["message"].is_string() && body["error"]["hint"].is_string(), "{body}");
        }
        assert_eq!(answer("/v1/accounts/a%20b").await, (StatusCode::OK, b"a b".to_vec()));
        assert_eq!(answer("/v1/changes?since=3").await.0, StatusCode::OK);
    }
}
