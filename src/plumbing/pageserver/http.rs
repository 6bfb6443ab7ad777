//! Status, metrics and a page over HTTP, on an address of this machine.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use super::Addresses;
use super::session::Proxy;
use super::status::{measure, status};
use crate::error::CommandError;

const PAGE: &str = include_str!("page.html");
/// The page brings its own script and style, and talks to nobody else.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// OpenMetrics, which Prometheus asks for.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Shared {
    proxy: Arc<Proxy>,
    addresses: Addresses,
}

/// Answers until the listener fails.
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>, addresses: Addresses) {
    let shared = Arc::new(Shared { proxy, addresses });
    let pages = Router::new()
        .route("/", get(async || ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))))
        .route("/status", get(send_status))
        .route("/metrics", get(send_metrics))
        .layer(from_fn(only_by_own_name))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, pages).await {
        tracing::error!("HTTP ended: {error}");
    }
}

/// Turns away what came here under the name of somebody else's site: a page in a browser must not read what is
/// here by having its name point to this machine (DNS rebinding).
async fn only_by_own_name(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let is_own = name == "localhost" || name.ends_with(".localhost") || name.parse::<std::net::IpAddr>().is_ok();
    if !is_own {
        return (StatusCode::FORBIDDEN, "ask by address or as localhost\n").into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Runs on a thread of its own what looks into the repository.
async fn look<T: Send + 'static>(
    shared: Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, CommandError> + Send + 'static,
) -> Result<T, Response> {
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, text + "\n").into_response();
    let done = spawn_blocking(move || work(&shared).map_err(|error| error.text())).await;
    done.map_err(|error| failed(error.to_string()))?.map_err(failed)
}

async fn send_status(State(shared): State<Arc<Shared>>) -> Result<Response, Response> {
    let status = look(shared, |shared| status(&shared.proxy.supervisor, &shared.addresses)).await?;
    Ok(Json(status).into_response())
}

async fn send_metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Response> {
    let metrics = shared.proxy.metrics.clone();
    look(shared, |shared| measure(&shared.proxy.supervisor)).await?;
    Ok(([(header::CONTENT_TYPE, METRICS)], metrics.text()).into_response())
}
