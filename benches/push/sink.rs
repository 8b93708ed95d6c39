//! nginx as a binary cache that stores what it is sent: what any server costs a stock client at least.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::store::Folder;
use crate::support::{text, wait_until};

/// nginx with an empty folder; it ends when this is dropped.
pub struct Sink {
    pub url: String,
    nginx: Child,
    _folder: Folder,
}

impl Sink {
    pub fn start() -> Sink {
        let folder = Folder::new();
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let conf = folder.path().join("nginx.conf");
        let dir = folder.path().display();
        // Like the server beside it: one process that answers, connections that stay, nothing synced.
        let lines = format!(
            "daemon off;\nworker_processes 2;\nuser root;\npid {dir}/pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\n access_log off;\n client_body_temp_path {dir}/body;\n client_max_body_size 0;\n \
             keepalive_requests 1000000;\n server {{ listen {address}; root {dir}/cache; dav_methods PUT; \
             create_full_put_path on; }}\n}}\n"
        );
        std::fs::create_dir(folder.path().join("cache")).expect("a folder");
        std::fs::write(&conf, lines).expect("written");
        let mut command = Command::new("/usr/sbin/nginx");
        command.args(["-c", text(&conf)]).stderr(Stdio::null());
        let nginx = command.spawn().expect("nginx is installed (nginx-light)");
        wait_until("nginx answers", Duration::from_secs(10), || {
            std::net::TcpStream::connect(address).is_ok()
        });
        Sink { url: format!("http://{address}"), nginx, _folder: folder }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Its master ends its workers where it is asked, and not where it is killed.
        let _ = Command::new("kill").arg(self.nginx.id().to_string()).status();
        let _ = self.nginx.wait();
    }
}
