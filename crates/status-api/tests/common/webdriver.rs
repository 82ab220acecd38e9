//! Chromium, driven through chromedriver by W3C's `WebDriver` protocol.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt as _;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::PATIENCE;

/// A browser with one window. Ends with its driver when dropped.
pub(crate) struct Browser {
    driver: Child,
    addr: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one; `None` after saying so when there is none on the machine.
    pub(crate) async fn start() -> Option<Self> {
        let mut driver = match Command::new("chromedriver")
            .args(["--port=0", "--allowed-ips=127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        {
            Ok(driver) => driver,
            Err(error) => {
                zeropod_testkit::skip::skip(&format!(
                    "cannot start chromedriver ({error}); it is in Debian's package chromium-driver"
                ));
                return None;
            }
        };
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = said
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse::<u16>().ok()
            })
            .expect("chromedriver says its port");
        // It must always find someone who reads.
        std::thread::spawn(move || said.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let profile_dir = format!("--user-data-dir={}", profile.path().display());
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let mut browser = Self { driver, addr, session: String::new(), _profile: profile };
        let options = json!({ "args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
            "--window-size=1280,800", profile_dir,
        ] });
        let made = browser
            .call(
                "POST",
                "/session",
                &json!({ "capabilities": { "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": { "browser": "ALL" },
            } } }),
            )
            .await;
        made["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        Some(browser)
    }

    pub(crate) async fn open(&self, url: &str) {
        self.command("url", &json!({ "url": url })).await;
    }

    /// Runs the body of a function in the page and returns what it returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Waits until an expression is true in the page.
    pub(crate) async fn until(&self, expression: &str) {
        let start = Instant::now();
        while self.run(&format!("return Boolean({expression})")).await != json!(true) {
            if start.elapsed() > PATIENCE {
                let text = self.run("return document.body.innerText").await;
                panic!("in vain: {expression}; the page says {text}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Presses keys, one after the other.
    pub(crate) async fn press(&self, keys: &[&str]) {
        let actions: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.command("actions", &json!({ "actions": [keyboard] })).await;
    }

    /// Size of the page in CSS pixels.
    pub(crate) async fn size(&self, width: u32, height: u32, mobile: bool) {
        let params = json!({
            "width": width, "height": height, "deviceScaleFactor": 2, "mobile": mobile,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", &params).await;
    }

    pub(crate) async fn prefer(&self, color_scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": color_scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features })).await;
    }

    pub(crate) async fn devtools(&self, command: &str, params: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": params })).await
    }

    /// What the browser complained of since it was last asked: script errors
    /// and violations of the page's policy.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let entries = self.command("se/log", &json!({ "type": "browser" })).await;
        let text = |entry: &Value| entry["message"].as_str().unwrap_or_default().to_owned();
        entries.as_array().expect("log entries").iter().map(text).collect()
    }

    /// Leaves a picture in the target directory's `screenshots`.
    pub(crate) async fn screenshot(&self, name: &str) -> PathBuf {
        let path = format!("/session/{}/screenshot", self.session);
        let shot = self.call("GET", &path, &Value::Null).await;
        let png = STANDARD.decode(shot.as_str().expect("a picture")).unwrap();
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let dir = target.parent().expect("a directory in target").join("screenshots");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("{name}.png"));
        std::fs::write(&path, png).unwrap();
        path
    }

    async fn command(&self, command: &str, params: &Value) -> Value {
        self.call("POST", &format!("/session/{}/{command}", self.session), params).await
    }

    async fn call(&self, method: &str, path: &str, params: &Value) -> Value {
        let answer = async {
            let stream = TcpStream::connect(self.addr).await.unwrap();
            let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let body = if method == "GET" { String::new() } else { params.to_string() };
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, self.addr.to_string())
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body))
                .unwrap();
            let response = requests.send_request(request).await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes()
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("chromedriver answers");
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path}: {value}");
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the driver in order ends the browser too.
        if let Ok(mut stream) = std::net::TcpStream::connect(self.addr) {
            use std::io::{Read as _, Write as _};
            let request = format!(
                "DELETE /session/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.session, self.addr
            );
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read(&mut [0; 1024]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
