//! An https server of a folder on the loopback interface, with a certificate of an authority of its own. One
//! request for each connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The server. Its thread ends with the test's process.
pub struct TlsServer {
    address: SocketAddr,
    authority: String,
}

impl TlsServer {
    /// A server of `folder` under the name `localhost`.
    #[track_caller]
    pub fn new(folder: PathBuf) -> TlsServer {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of the provider")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key of the certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (config, folder) = (config.clone(), folder.clone());
                std::thread::spawn(move || answer(connection, config, &folder));
            }
        });
        TlsServer { address, authority: made.cert.pem() }
    }

    /// Its address, such as `https://localhost:40123`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The certificate of its authority, as a file of certificates has it.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

fn answer(connection: TcpStream, config: Arc<ServerConfig>, folder: &Path) -> std::io::Result<()> {
    let tls = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(tls, connection));
    let (mut request, mut line) = (String::new(), String::new());
    stream.read_line(&mut request)?;
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let name = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let (status, body) = match std::fs::read(folder.join(name)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let stream = stream.get_mut();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    stream.flush()
}
