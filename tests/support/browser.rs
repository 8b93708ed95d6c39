//! Headless Chromium, driven by chromedriver over WebDriver (<https://www.w3.org/TR/webdriver2/>). Its
//! profile is a folder of the test, and it asks no server but those that a test names.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::Agent;

use super::process::{self, kill_tree, wait_until};
use super::store::Folder;

/// Time limit of what a page does by itself.
const SOON: Duration = Duration::from_secs(60);
/// Arguments of Chromium.
const ARGUMENTS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];
/// The key of an element in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window.
pub struct Browser {
    agent: Agent,
    session: String,
    driver: Child,
    _profile: Folder,
}

impl Browser {
    /// Starts one. Needs Debian's `chromium` and `chromium-driver`.
    #[track_caller]
    pub fn start() -> Browser {
        let profile = Folder::new();
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = process::spawn(&mut command);
        let stdout = driver.stdout.take().expect("the output was asked for");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, rest) = line.split_once("started successfully on port ")?;
            rest.trim_end_matches('.').parse::<u16>().ok()
        });
        let port = port.expect("chromedriver says its port; install chromium-driver");
        // It goes on to print.
        std::thread::spawn(move || lines.for_each(drop));
        let config =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(2 * SOON)).build();
        let agent: Agent = config.into();
        let data = format!("--user-data-dir={}", profile.path().display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([&*data]).collect();
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser =
            Browser { agent, session: format!("http://127.0.0.1:{port}/session"), driver, _profile: profile };
        let made = browser.post("", &capabilities);
        let id = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}")).to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    #[track_caller]
    fn post(&self, command: &str, body: &Value) -> Value {
        let request = self.agent.post(format!("{}{command}", self.session));
        let mut answer = request
            .header("content-type", "application/json")
            .send(body.to_string())
            .unwrap_or_else(|error| panic!("WebDriver {command}: {error}"));
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().expect("a body");
        let told: Value = serde_json::from_str(&text).expect("JSON");
        assert!(answer.status() == 200, "WebDriver {command}: {}", told["value"]["message"]);
        told["value"].clone()
    }

    /// Opens a page and waits until it is loaded.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Sets the size of the window's contents, in CSS pixels.
    #[track_caller]
    pub fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Has pages take the system's colours for dark ones, or for light ones.
    #[track_caller]
    pub fn prefer_dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.command("Emulation.setEmulatedMedia", &features);
    }

    /// Runs scripts of pages, or none.
    #[track_caller]
    pub fn allow_scripts(&self, allowed: bool) {
        self.command("Emulation.setScriptExecutionDisabled", &json!({ "value": !allowed }));
    }

    #[track_caller]
    fn command(&self, name: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    /// Value of a script's `return`.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Value that an asynchronous script gives to its last argument.
    #[track_caller]
    pub fn run_async(&self, script: &str) -> Value {
        self.post("/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Visible text of the page.
    #[track_caller]
    pub fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page shows these words.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        let mut last = String::new();
        let mut shows = || {
            last = self.text();
            last.contains(words)
        };
        let deadline = std::time::Instant::now() + SOON;
        while !shows() {
            if std::time::Instant::now() > deadline {
                panic!("the page does not show {words:?}, but:\n{last}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a script's value is true.
    #[track_caller]
    pub fn wait_until_true(&self, what: &str, script: &str) {
        wait_until(what, SOON, || self.run(&format!("return !!({script})")) == true);
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("no element {selector}")).to_owned()
    }

    /// Clicks the first element of a selector.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    /// Types into the first element of a selector; `\u{e007}` is the enter key.
    #[track_caller]
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Errors that the console has had since the last call.
    #[track_caller]
    pub fn console_errors(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().cloned().unwrap_or_default();
        let errors = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].to_string()).collect()
    }

    /// The page as an image (PNG): all of it, or the window's size of its top.
    #[track_caller]
    pub fn screenshot(&self, whole: bool) -> Vec<u8> {
        let parameters = json!({ "format": "png", "captureBeyondViewport": whole });
        let mut parameters = parameters;
        if whole {
            let size = self.run("return [innerWidth, Math.min(document.documentElement.scrollHeight, 6000)]");
            parameters["clip"] = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        }
        let taken = self.command("Page.captureScreenshot", &parameters);
        STANDARD.decode(taken["data"].as_str().expect("an image")).expect("base 64")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
        kill_tree(self.driver.id());
        let _ = self.driver.wait();
    }
}
