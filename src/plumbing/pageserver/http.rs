//! Status, metrics and a page over HTTP, for the owner, and for who has the token that the owner gave away; not for the pages of other
//! sites that they look at.

use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};

use super::Addresses;
use super::peer::Peer;
use super::session::Proxy;
use super::status::{Snapshots, measure, status};
use super::visitors::Visitors;
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
    snapshots: Snapshots,
    turn: Turn,
}

/// Answers until the listener fails.
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>, addresses: Addresses) {
    let shared = Arc::new(Shared { proxy, addresses, snapshots: Snapshots::default(), turn: Turn::default() });
    let pages = Router::new()
        .route("/", get(async || ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))))
        .route("/status", get(send_status))
        .route("/metrics", get(send_metrics))
        .layer(from_fn_with_state(shared.clone(), only_for_the_owner))
        .layer(from_fn(only_for_own_pages))
        .layer(from_fn(only_by_own_name))
        .with_state(shared)
        .into_make_service_with_connect_info::<Peer>();
    if let Err(error) = axum::serve(Visitors::new(listener), pages).await {
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
    // A visitor has only so long, which the next question would not have.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Turns away other users, who are not to know of branches and paths, unless they have the token: in the address, or as a
/// bearer's (RFC 6750), which Prometheus can send.
async fn only_for_the_owner(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let bearer =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let query = request.uri().query().unwrap_or_default().split('&').find_map(|part| part.strip_prefix("token="));
    // How long it takes to compare digests says nothing of the token.
    let digest = |token: &str| Sha256::digest(token.as_bytes());
    let own = Some(&shared.addresses.token).filter(|token| !token.is_empty()).map(|token| digest(token));
    if peer.is_owner() || bearer.or(query).is_some_and(|token| Some(digest(token)) == own) {
        return next.run(request).await;
    }
    let text =
        "only for the owner of the repository, whom this tells an address with a token: zenith pageserver status\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

/// Turns away what a page of somebody else's site has a browser ask, which counts as its user: it could read nothing of the answer,
/// but keep this process busy.
async fn only_for_own_pages(request: Request, next: Next) -> Response {
    if is_asked_by_others(request.headers()) {
        return (StatusCode::FORBIDDEN, "not for pages of other sites\n").into_response();
    }
    next.run(request).await
}

/// Returns whether a browser says that another site's page asks (Fetch Metadata, RFC 6454). To come by a link from there is not that.
fn is_asked_by_others(headers: &HeaderMap) -> bool {
    let said = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_link = said("sec-fetch-mode") == Some("navigate") && said("sec-fetch-dest") == Some("document");
    let is_other_site = said("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site));
    let host = |origin: &str| origin.split_once("://").map(|(_, host)| host.to_owned());
    let is_other_origin = said("origin").is_some_and(|origin| host(origin).as_deref() != said("host"));
    (is_other_site || is_other_origin) && !is_link
}

/// Whose turn it is to look into the repository: a look costs more than a question, and goes on when who asked has gone.
#[derive(Default)]
struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// Runs `work` on a thread of its own, once that before it has ended.
    async fn take<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
        let turn = self.0.clone().lock_owned().await;
        let alone = move || {
            let _turn = turn;
            work()
        };
        spawn_blocking(alone).await
    }
}

/// Looks into the repository.
async fn look<T: Send + 'static>(
    shared: Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, CommandError> + Send + 'static,
) -> Result<T, Response> {
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, text + "\n").into_response();
    let looking = shared.clone();
    let done = shared.turn.take(move || work(&looking).map_err(|error| error.text())).await;
    done.map_err(|error| failed(error.to_string()))?.map_err(failed)
}

async fn send_status(State(shared): State<Arc<Shared>>) -> Result<Response, Response> {
    let status = look(shared, |shared| status(&shared.proxy.supervisor, &shared.addresses, &shared.snapshots)).await?;
    Ok(Json(status).into_response())
}

async fn send_metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Response> {
    let metrics = shared.proxy.metrics.clone();
    look(shared, |shared| measure(&shared.proxy.supervisor, &shared.snapshots)).await?;
    Ok(([(header::CONTENT_TYPE, METRICS)], metrics.text()).into_response())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn other_sites_are_told_from_links_and_from_the_own_page() {
        let asks = |headers: &[(&'static str, &str)]| {
            let all = headers.iter().chain(&[("host", "localhost:64000")]);
            is_asked_by_others(&all.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
        };
        for own in [
            &[][..],
            &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
            &[("origin", "http://localhost:64000")],
        ] {
            assert!(!asks(own), "{own:?}");
        }
        for other in [
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "empty")][..],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
            &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "https://evil.example")],
            &[("origin", "null")],
        ] {
            assert!(asks(other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn looks_follow_one_another_though_nobody_waits_for_them() {
        let turn = Turn::default();
        let (looking, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..8 {
            let (looking, most) = (looking.clone(), most.clone());
            let work = move || {
                most.fetch_max(looking.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
                looking.fetch_sub(1, Ordering::SeqCst);
            };
            // The visitor leaves as soon as it has asked.
            let _ = tokio::time::timeout(Duration::from_millis(10), turn.take(work)).await;
        }
        turn.take(|| ()).await.unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }
}
