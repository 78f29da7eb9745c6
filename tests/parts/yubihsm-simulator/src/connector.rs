//! The connector: HTTP on 127.0.0.1, one message per POST.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::device::Device;
use crate::faults::Faults;
use crate::wire::LARGEST_MESSAGE;

/// Serves the device until the process is killed. Prints its port once it can be reached.
pub fn serve(port: u16, control: Option<PathBuf>, device: Device) -> io::Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let port = listener.local_addr()?.port();
        println!(r#"{{"step":"listening","ok":true,"port":{port}}}"#);
        let connector = Arc::new(Connector { port, control, device: Mutex::new(device) });
        loop {
            connector.accept(listener).await?;
            while connector.faults().refuse {
                sleep(GLANCE).await;
            }
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        }
    })
}

/// How often the control file is looked at while no command comes.
const GLANCE: Duration = Duration::from_millis(5);

struct Connector {
    port: u16,
    control: Option<PathBuf>,
    /// One command at a time, as in the device.
    device: Mutex<Device>,
}

impl Connector {
    fn faults(&self) -> Faults {
        Faults::read(self.control.as_deref())
    }

    /// Returns once connections are to be refused; all are closed then.
    async fn accept(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut connections = JoinSet::new();
        while !self.faults().refuse {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    let connector = self.clone();
                    let service = service_fn(move |request| connector.clone().answer(request));
                    // A connection that breaks is its client's matter.
                    connections.spawn(async { drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await) });
                }
                () = sleep(GLANCE) => while connections.try_join_next().is_some() {},
            }
        }
        Ok(())
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::GET, "/connector/status") => text(StatusCode::OK, self.status()),
            (&Method::POST, "/connector/api") => match Limited::new(request, LARGEST_MESSAGE).collect().await {
                Ok(message) => {
                    let mut answer = Response::new(Full::from(self.command(&message.to_bytes()).await));
                    answer
                        .headers_mut()
                        .insert(CONTENT_TYPE, "application/octet-stream".parse().expect("a header's value"));
                    answer
                }
                Err(_) => text(StatusCode::BAD_REQUEST, "no message\n".to_owned()),
            },
            _ => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
        };
        Ok(answer)
    }

    fn status(&self) -> String {
        let (pid, port) = (process::id(), self.port);
        format!("status=OK\nserial=*\nversion=3.0.5\npid={pid}\naddress=localhost\nport={port}\n")
    }

    async fn command(&self, message: &[u8]) -> Vec<u8> {
        let mut device = self.device.lock().await;
        while self.faults().silent {
            sleep(GLANCE).await;
        }
        let faults = self.faults();
        sleep(Duration::from_millis(faults.delay_ms)).await;
        device.set_faults(faults);
        device.answer(message)
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer
}
