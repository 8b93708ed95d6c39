//! The reader of a page: rights, theme, and the way from the page's address to all others. Every page is
//! answered through here, its errors included.

use std::sync::Arc;

use askama::Template;
use hyper::HeaderMap;

use super::super::Service;
use super::super::accept::{Preference, preference};
use super::super::address::Peer;
use super::super::answer::{self, Answer};
use super::super::call::Call;
use super::super::error::Error;
use super::super::response_future::ResponseFuture;
use super::assets::{SCRIPT, STYLE};
use super::session::{Session, THEME_COOKIE, Theme, cookie};
use crate::caller::{Action, Caller, may};

/// The reader of a page.
pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) session: Option<Session>,
    theme: Option<Theme>,
    /// Relative address of the cache's own folder, with a slash at the end.
    pub(super) root: String,
    /// Address of this page from there.
    here: String,
    /// The cache's address as the visitor's browser has it.
    pub(super) url: String,
}

/// The frame of a page: its head, navigation and foot.
pub(super) struct PageFrame {
    pub(super) title: String,
    /// Part of the site, for the navigation.
    pub(super) section: &'static str,
    pub(super) root: String,
    pub(super) here: String,
    pub(super) theme: &'static str,
    /// Name of the visitor's token.
    pub(super) user: Option<String>,
    /// Proof that a form is ours; empty without a token.
    pub(super) proof: String,
    pub(super) style: String,
    pub(super) script: String,
    pub(super) version: &'static str,
}

#[derive(Template)]
#[template(path = "error.html", config = "src/http/page/askama.toml")]
struct ErrorPage<'a> {
    shell: PageFrame,
    text: &'a str,
    lacks_right: bool,
}

impl Visitor {
    /// The visitor that a request comes from.
    pub(super) fn of(call: &Call<'_>) -> Self {
        let Call { service, headers, raw_path, query, .. } = call;
        Self::at(service, call.caller.clone(), call.peer, headers, raw_path, *query)
    }

    /// The visitor of an address.
    fn at(
        service: &Service,
        mut caller: Caller,
        peer: Option<Peer>,
        headers: &HeaderMap,
        raw_path: &str,
        query: Option<&str>,
    ) -> Self {
        let session = Session::of(headers);
        // What a header says comes first.
        if let (Caller::Public { address, via, rejected: None, .. }, Some(session)) = (&caller, &session)
            && let Ok(grant) = service.state.auth.authenticate(session.credentials().as_bytes())
        {
            caller = Caller::Token { grant, address: *address, via: via.clone() };
        }
        let session = session.filter(|_| caller.grant().is_some());
        let state = &service.state;
        let asked_url = || peer.and_then(|peer| peer.asked_url(headers));
        let url = state.settings.public_url.clone().or_else(asked_url);
        let depth = raw_path.matches('/').count().saturating_sub(1);
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Self {
            caller,
            session,
            theme: theme(headers),
            root: if depth == 0 { "./".to_owned() } else { "../".repeat(depth) },
            here: format!("{}{query}", raw_path.trim_start_matches('/')),
            url: url.unwrap_or_else(|| state.url.clone()).to_string(),
        }
    }

    /// The frame of a page.
    pub(super) fn shell(&self, title: impl Into<String>, section: &'static str) -> PageFrame {
        PageFrame {
            title: title.into(),
            section,
            root: self.root.clone(),
            here: self.here.clone(),
            theme: self.theme.map_or("", Theme::name),
            user: self.session.as_ref().and(self.caller.grant()).map(|grant| grant.name.clone()),
            proof: self.session.as_ref().map(Session::proof).unwrap_or_default(),
            style: STYLE.address(),
            script: SCRIPT.address(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// True where the visitor may do this.
    pub(super) fn may(&self, action: Action) -> bool {
        may(&self.caller, action).is_ok()
    }

    /// The page of an error.
    pub(super) fn error(&self, error: Error) -> Answer {
        error.page(|text, lacks_right| {
            render(&ErrorPage { shell: self.shell("Not available", ""), text, lacks_right })
        })
    }
}

/// A browser that asks for an address that nothing has.
pub(in crate::http) struct LostBrowser {
    service: Service,
    caller: Caller,
    peer: Option<Peer>,
    headers: HeaderMap,
    path: String,
}

impl LostBrowser {
    /// `None` for a client that does not prefer pages.
    pub(in crate::http) fn of(
        service: &Service,
        caller: &Caller,
        peer: Option<Peer>,
        headers: &HeaderMap,
        path: &str,
    ) -> Option<Self> {
        let (caller, headers) = (caller.clone(), wants_html(headers).then(|| headers.clone())?);
        Some(Self { service: service.clone(), caller, peer, headers, path: path.to_owned() })
    }

    /// The page that says so.
    pub(in crate::http) fn answer(&self, error: Error) -> Answer {
        let Self { service, caller, peer, headers, path } = self;
        Visitor::at(service, caller.clone(), *peer, headers, path, None).error(error)
    }
}

/// The caller of a page, or of what a page's script asks for: known by a header, or by a cookie.
pub(in crate::http) fn caller(call: &Call<'_>) -> Caller {
    Visitor::of(call).caller
}

fn theme(headers: &HeaderMap) -> Option<Theme> {
    Theme::parse(cookie(headers, THEME_COOKIE)?)
}

/// True for a browser, which prefers HTML.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    preference(headers) == Preference::Html
}

/// The text of a page.
pub(super) fn render(page: &impl Template) -> String {
    // Writing to a string does not fail, and no template of ours does.
    page.render().unwrap_or_default()
}

/// The answer with a page.
pub(super) fn answer(page: &impl Template) -> Answer {
    answer::page(render(page))
}

/// Answers with a page, if the visitor has the right; else, and after an error, with a page that says why
/// not.
pub(super) fn respond<F>(
    call: &Call<'_>,
    action: Action,
    page: impl FnOnce(Service, Arc<Visitor>) -> F,
) -> Option<ResponseFuture>
where
    F: Future<Output = Result<Answer, Error>> + Send + 'static,
{
    let visitor = Arc::new(Visitor::of(call));
    let counted = call.service.state.auth.rates().count(&visitor.caller).map_err(Error::TooFast);
    let admitted = counted.and_then(|()| may(&visitor.caller, action).map_err(Error::Refused));
    if let Err(error) = admitted {
        return Some(ResponseFuture::ready(visitor.error(error)));
    }
    let page = page(call.service.clone(), Arc::clone(&visitor));
    Some(ResponseFuture::pending(async move { Ok(page.await.unwrap_or_else(|error| visitor.error(error))) }))
}
