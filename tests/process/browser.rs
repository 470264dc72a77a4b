//! A headless Chromium for tests, spoken with over its DevTools pipe: one JSON message and a zero byte at a time, no port and no
//! driver between. Closing the pipe ends it, however the test ends.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
};

use serde_json::{Value, json};

use super::{
    not_tested,
    site::{PATIENCE, until},
};

/// Reads and writes descriptors 3 and 4, which [`Command`] cannot hand over.
const START: &str = "exec chromium \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null";
/// No sandbox: containers and root have none. Nothing of Chromium's own goes to the network.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
];

pub(super) struct Browser {
    child: Child,
    pipe: ChildStdin,
    said: Receiver<Value>,
    asked: u64,
    session: Option<String>,
    /// All that the page has asked for, from its first byte on.
    pub(super) requests: Vec<String>,
    /// What the page's scripts and policy complained about.
    pub(super) complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// A browser with an empty page; `None` where there is no Chromium.
    pub(super) fn start() -> Option<Browser> {
        let there =
            Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            not_tested("chromium is not installed (Debian: chromium)");
            return None;
        }
        let profile = tempfile::Builder::new().prefix("quorate-test-").tempdir().expect("a folder");
        let mut child = Command::new("/bin/sh")
            .args(["-c", START, "sh"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let (tell, said) = channel();
        let answers = BufReader::new(child.stdout.take().expect("is piped"));
        std::thread::spawn(move || {
            for message in answers.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("DevTools speaks JSON");
                if tell.send(message).is_err() {
                    break;
                }
            }
        });
        let pipe = child.stdin.take().expect("is piped");
        let mut browser = Browser {
            child,
            pipe,
            said,
            asked: 0,
            session: None,
            requests: Vec::new(),
            complaints: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// One DevTools command and its answer. What happened meanwhile is noted.
    #[track_caller]
    pub(super) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut message = json!({ "id": self.asked, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        write!(self.pipe, "{message}\0").expect("chromium listens");
        loop {
            let said = self.said.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{method}: {e}"));
            if said["id"] == self.asked {
                assert!(said["error"].is_null(), "{method}: {}", said["error"]);
                return said["result"].clone();
            }
            self.note(&said);
        }
    }

    fn note(&mut self, event: &Value) {
        let of = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.push(of["request"]["url"].as_str().expect("an address").to_owned());
            }
            Some("Network.webSocketCreated" | "Network.webTransportCreated") => {
                self.requests.push(of["url"].as_str().expect("an address").to_owned());
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(of["exceptionDetails"].to_string()),
            // That a sidecar is away is noted here too, and is no fault of the page.
            Some("Log.entryAdded") if of["entry"]["source"] != "network" => {
                self.complaints.push(of["entry"]["text"].to_string());
            }
            _ => {}
        }
    }

    pub(super) fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        until("the page to be there", || (self.eval("document.readyState") == "complete").then_some(()));
    }

    /// The value of an expression on the page.
    #[track_caller]
    pub(super) fn eval(&mut self, expression: &str) -> Value {
        let ask = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", ask);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// What stands in the element with this id, as it is read.
    #[track_caller]
    pub(super) fn text(&mut self, id: &str) -> String {
        let text = self.eval(&format!("document.getElementById('{id}').innerText"));
        text.as_str().expect("a text").to_owned()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(super) fn shows(&mut self, what: &str, expression: &str) {
        until(what, || (self.eval(expression) == true).then_some(()));
    }

    /// Presses a key that writes nothing, such as `Tab`, or `Enter`.
    pub(super) fn press(&mut self, key: &str) {
        let (code, text) = if key == "Tab" { (9, "") } else { (13, "\r") };
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let key =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    pub(super) fn scheme(&mut self, name: &str) {
        let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": name }] });
        self.call("Emulation.setEmulatedMedia", dark);
    }

    /// The size of the window in CSS pixels; narrow ones are phones.
    pub(super) fn size(&mut self, width: u32, height: u32) {
        let phone = width < 600;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// A picture of the whole page, PNG in base64.
    pub(super) fn picture(&mut self, file: &Path) {
        use base64::Engine as _;
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.call("Page.captureScreenshot", whole);
        let data = shot["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        std::fs::write(file, bytes).expect("writes");
    }
}
