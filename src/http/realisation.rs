//! `/realisations/<id>.doi` and `/build-trace-v2/<derivation>/<output>.doi`: answered at once, and nothing is built for them.

use narinfo::DrvOutput;

use super::Service;
use super::answer::{self, Answer};
use crate::upstream::Asker;

pub(super) async fn get(service: &Service, id: &DrvOutput, asker: &Asker) -> Answer {
    match service.parts.substitute.realisation(id, asker).await {
        Ok(realisation) => answer::ready(answer::JSON, realisation.render()),
        Err(reason) => answer::missing_path(reason),
    }
}
