//! The three RPCs as they come from the transport: path, frame and message through the generated server and the checks of the service,
//! on a keyring without a token. No input makes an answer without a status, or one that blames the plugin.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hsm_kms::keyring::{Current, Kek, Keyring, RewrapTable};
use hsm_kms::kms::proto::key_management_service_server::KeyManagementServiceServer;
use hsm_kms::kms::service::{MAX_MESSAGE_BYTES, Service};
use hsm_kms::kms::status::HealthPolicy;
use hsm_kms::record::{KekRecord, Sha256Digest};
use hsm_kms::token::Tokens;
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use prost::bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::codegen::http::Request;
use tower::ServiceExt;

/// Its key_id stands in the seeds.
const RECORD: &[u8] = include_bytes!("../corpus/record/trial");

/// What a lost KEK sealed; the key_id of that stands in the seeds, too.
const TABLE: &[u8] = include_bytes!("../corpus/rewrap_table/two");

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, body)) = bytes.split_first() else { return };
    let method = ["Status", "Encrypt", "Decrypt", "Other"][usize::from(kind & 3)];
    // Every second one is whole, every other is a frame as the fuzzer makes it.
    let body = if kind & 4 == 0 {
        [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    } else {
        body.to_vec()
    };
    let request = Request::post(format!("http://kms/v2.KeyManagementService/{method}"));
    let request =
        request.header("content-type", "application/grpc").header("te", "trailers").header("grpc-timeout", "1m");
    let request = request.body(Body::new(Full::new(Bytes::from(body)))).unwrap();
    let (runtime, server) = server();
    let code = runtime.block_on(async {
        let (head, body) = server.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.map_err(|status| format!("{status:?}"));
        let trailers = body.as_ref().ok().and_then(|body| body.trailers()?.get("grpc-status"));
        let status = head.headers.get("grpc-status").or(trailers).expect("an answer has a status");
        status.to_str().unwrap().parse::<u32>().unwrap()
    });
    match (method, code) {
        // OK, or a message that is none: tonic calls that INTERNAL, a frame that is none or is too long as well, and another compression
        // UNIMPLEMENTED. OUT_OF_RANGE: longer than this server reads.
        ("Status", 0) | (_, 11 | 12 | 13) => {}
        // INVALID_ARGUMENT, NOT_FOUND, and with everything right: UNAVAILABLE or DEADLINE_EXCEEDED.
        ("Encrypt" | "Decrypt", 3 | 4 | 5 | 14) => {}
        _ => panic!("{method} is answered with {code}"),
    }
});

fn server() -> &'static (Runtime, KeyManagementServiceServer<Service>) {
    static SERVER: OnceLock<(Runtime, KeyManagementServiceServer<Service>)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let tokens = runtime.block_on(async { Tokens::start(Vec::new(), 64) });
        let kek = Kek::only(KekRecord::parse(RECORD).unwrap(), Sha256Digest::of(RECORD));
        let keyring = Keyring::new("prod-eu-1", vec![kek], tokens).unwrap();
        let table = RewrapTable::parse(TABLE).ok();
        assert!(table.is_some());
        let service =
            Service::new(Arc::new(Current::fixed(keyring)), HealthPolicy::Strict, Duration::from_millis(1), table);
        (runtime, KeyManagementServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES))
    })
}
