//! Lines like those about a wait, sent one by one within two seconds: a client that receives them together
//! has a proxy before it that withholds them.

use std::time::Duration;

use super::answer;
use super::call::Call;
use super::narinfo::wait_line;
use super::response_future::ResponseFuture;
use super::stream_body::stream_body;

/// Lines of a test.
const LINES: u32 = 4;
/// Time between two of them.
const INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    let body = stream_body(|mut writer| async move {
        for number in 1..=LINES {
            writer.send(wait_line(&format!("test {number} of {LINES}"))).await;
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = service.stopping() => break,
            }
        }
        Ok(())
    });
    Some(ResponseFuture::ready(answer::streamed(answer::NARINFO, body)))
}
