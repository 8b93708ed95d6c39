//! Forms: the one to sign in with a token, those to sign out and to choose a theme, and the check that a form
//! is ours.

use std::time::Duration;

use askama::Template;
use hyper::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::super::answer::{self, Answer};
use super::super::call::{Call, parameters};
use super::super::error::Error;
use super::super::request_body::{BodyBounds, RequestBody};
use super::super::response_future::ResponseFuture;
use super::format::form_encoded;
use super::session::{Session, THEME_COOKIE, TOKEN_COOKIE, Theme};
use super::visitor::{PageFrame, Visitor, render};

/// Seconds for which a browser keeps a token: 30 days.
const TOKEN_SECONDS: u64 = 30 * 24 * 3600;
/// Seconds for which a browser keeps a theme: a year.
const THEME_SECONDS: u64 = 365 * 24 * 3600;
/// Bounds of a form.
const FORM: BodyBounds = BodyBounds { bytes_max: 16 * 1024, time_max: Duration::from_secs(30) };

/// Fields of a form.
pub(super) struct PageForm(Vec<(String, String)>);

#[derive(Template)]
#[template(path = "sign_in.html", config = "src/http/page/askama.toml")]
struct SignInPage {
    shell: PageFrame,
    back: String,
    error: Option<String>,
}

impl PageForm {
    /// Reads a form that a page of ours has sent.
    pub(super) async fn read(
        visitor: &Visitor,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<Self, Error> {
        if !is_ours(visitor, headers) {
            let reason = "this form was sent by another site, and nothing was done; open the page here";
            return Err(Error::BadRequest(reason.to_owned()));
        }
        let body = body.collect(FORM).await?;
        let text = form_encoded(std::str::from_utf8(&body).unwrap_or_default());
        let fields = parameters(Some(&text));
        Ok(Self(fields.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()))
    }

    pub(super) fn value(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// Refuses a form that was not made for this visitor.
    pub(super) fn check(&self, visitor: &Visitor) -> Result<(), Error> {
        let expected = visitor.session.as_ref().map(Session::proof);
        let is_right =
            expected.is_some_and(|proof| proof.as_bytes().ct_eq(self.value("proof").as_bytes()).into());
        if is_right {
            return Ok(());
        }
        let reason = "this form is out of date, and nothing was done; go back, reload the page and try again";
        Err(Error::BadRequest(reason.to_owned()))
    }
}

/// True for a form of this server's own pages: browsers say so, those before 2023 and those without HTTPS by
/// the header Origin alone. Other programs send neither, and have no cookies that could be abused.
fn is_ours(visitor: &Visitor, headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return [&b"same-origin"[..], b"none"].contains(&site.as_bytes());
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host =
        |url: &str| url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest).to_owned());
    let Some(origin) = origin.to_str().ok().and_then(host) else { return false };
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    asked.is_some_and(|asked| asked.eq_ignore_ascii_case(&origin))
        || host(&visitor.url).is_some_and(|own| own.eq_ignore_ascii_case(&origin))
}

fn set_cookie(answer: Answer, visitor: &Visitor, name: &str, value: &str, seconds: u64) -> Answer {
    let secure = if visitor.url.starts_with("https:") { "; Secure" } else { "" };
    let cookie = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    answer::with_cookie(answer, &cookie)
}

/// The way back to a page, which never leaves this server.
fn back_to(visitor: &Visitor, page: &str) -> Answer {
    // Addresses of pages are plain; anything else was not made by one of ours.
    let page = if page.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') { page } else { "" };
    answer::redirect(&format!("{}{}", visitor.root, page.trim_start_matches('/')))
}

/// The form to sign in.
pub(in crate::http) fn sign_in_form(call: Call<'_>) -> Option<ResponseFuture> {
    let back = parameters(call.query).find(|(key, _)| *key == "back").and_then(|(_, back)| back);
    let visitor = Visitor::of(&call);
    let page = SignInPage {
        shell: visitor.shell("Sign in", "sign-in"),
        back: back.unwrap_or_default(),
        error: None,
    };
    Some(ResponseFuture::ready(answer::page(render(&page))))
}

/// Takes a token, and has the browser keep it.
pub(in crate::http) fn sign_in(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, visitor) = (call.service.clone(), Visitor::of(&call));
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        if let Err(error) = service.state.auth.rates().count(&visitor.caller) {
            return Ok(visitor.error(Error::TooFast(error)));
        }
        let form = match PageForm::read(&visitor, &headers, body).await {
            Ok(form) => form,
            Err(error) => return Ok(visitor.error(error)),
        };
        let (token, back) = (form.value("token").trim(), form.value("back"));
        // A text that no cookie can hold is no token either.
        let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic() && !b",;\"\\".contains(&byte));
        let known = service.state.auth.authenticate(format!("Bearer {token}").as_bytes());
        match known {
            Ok(_) if is_plain => {
                Ok(set_cookie(back_to(&visitor, back), &visitor, TOKEN_COOKIE, token, TOKEN_SECONDS))
            }
            known => Ok(visitor.error_or(known.err(), back)),
        }
    }))
}

impl Visitor {
    /// The form to sign in once more, with the reason why a token is not valid.
    fn error_or(&self, rejection: Option<crate::caller::Rejection>, back: &str) -> Answer {
        let reason = rejection.map_or_else(|| "this is no token".to_owned(), |reason| reason.to_string());
        Error::BadRequest(reason).page(|text, _| {
            let (shell, back) = (self.shell("Sign in", "sign-in"), back.to_owned());
            render(&SignInPage { shell, back, error: Some(text.to_owned()) })
        })
    }
}

/// Has the browser forget the token.
pub(in crate::http) fn sign_out(call: Call<'_>) -> Option<ResponseFuture> {
    let visitor = Visitor::of(&call);
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        if let Err(error) = PageForm::read(&visitor, &headers, body).await {
            return Ok(visitor.error(error));
        }
        Ok(set_cookie(back_to(&visitor, ""), &visitor, TOKEN_COOKIE, "", 0))
    }))
}

/// Has the browser keep a theme, or the system's.
pub(in crate::http) fn theme(call: Call<'_>) -> Option<ResponseFuture> {
    let visitor = Visitor::of(&call);
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let form = match PageForm::read(&visitor, &headers, body).await {
            Ok(form) => form,
            Err(error) => return Ok(visitor.error(error)),
        };
        let answer = back_to(&visitor, form.value("back"));
        Ok(match Theme::parse(form.value("theme")) {
            Some(theme) => set_cookie(answer, &visitor, THEME_COOKIE, theme.name(), THEME_SECONDS),
            None => set_cookie(answer, &visitor, THEME_COOKIE, "", 0),
        })
    }))
}
