//! Settings of the log and of traces.

use crate::config::draft::SettingsDraft;
use crate::config::setting::{DefaultValue, OneOf, Setting, Text};
use crate::telemetry::{LogFormat, OtlpEndpoint};

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "log-format",
        doc: "Form of the log. `\"text\"` and `\"json\"` are lines on standard error; `\"journald\"` is entries of systemd's \
              journal with fields such as `ONDINE_DRV` and `ONDINE_REQUEST`. The variable `ONDINE_LOG` filters it.",
        default: DefaultValue::Is("text"),
        value: &OneOf {
            placeholder: "FORM",
            choices: &[
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
                ("journald", LogFormat::Journald),
            ],
            set: |to: &mut SettingsDraft, format| to.settings.telemetry.log_format = format,
        },
    },
    Setting {
        name: "otlp-endpoint",
        doc: "OpenTelemetry collector that traces are sent to, by OTLP over HTTP, such as `http://127.0.0.1:4318`. Needs a \
              program that was built with the feature `otel`. Headers and sampling are those of OpenTelemetry's own \
              variables, such as `OTEL_EXPORTER_OTLP_HEADERS`.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "URL",
            expected: OtlpEndpoint::EXPECTED,
            parse: OtlpEndpoint::parse,
            set: |to: &mut SettingsDraft, endpoint| to.settings.telemetry.otlp_endpoint = Some(endpoint),
        },
    },
];
