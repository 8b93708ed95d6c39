//! `/realisations/<id>.doi` and `/build-trace-v2/<derivation>/<output>.doi`: answered at once, and nothing is
//! built for them.

use narinfo::DrvOutput;

use super::answer;
use super::call::Call;
use super::response_future::ResponseFuture;

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let id = DrvOutput::from_file(call.path.trim_start_matches('/')).ok()?;
    let (service, asker) = (call.service.clone(), call.caller.asker());
    Some(ResponseFuture::pending(async move {
        let realisation = service.state.substitute.realisation(&id, &asker).await?;
        Ok(answer::ready(answer::JSON, realisation.render()))
    }))
}
