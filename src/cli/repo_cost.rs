//! `pitr repo cost`.

use super::output::Table;
use super::{Context, partial_unless};
use crate::error::Result;
use crate::operate::cost::{self, Cost};
use crate::operate::human;

pub fn run(cx: &Context) -> Result<u8> {
    let (costs, failures) = cost::look(&cx.session)?;
    cx.answer(&serde_json::json!({ "repositories": costs }), || {
        costs.iter().try_for_each(|cost| show(cx, cost))
    })?;
    partial_unless(cx.told(failures)?)
}

fn show(cx: &Context, cost: &Cost) -> Result<()> {
    cx.line(&format!("repository {}", cost.repository))?;
    let month = match &cost.currency {
        Some(currency) => format!("a month in {currency}"),
        None => "a month".to_owned(),
    };
    let mut table = Table::of(&format!(
        "kind | class | >objects | >stored | >of the last 30 days | >stored by requests | >{month}"
    ));
    for part in &cost.parts {
        table.row([
            part.kind.name(),
            part.class.as_deref().unwrap_or("-"),
            &part.all.object_count.to_string(),
            &human::size(part.all.stored_bytes),
            &human::size(part.last_month.stored_bytes),
            &part.put_requests.to_string(),
            part.month_price.as_deref().unwrap_or("?"),
        ]);
    }
    table.row([
        "all",
        "",
        &cost.all.object_count.to_string(),
        &human::size(cost.all.stored_bytes),
        &human::size(cost.last_month.stored_bytes),
        &cost.put_requests.to_string(),
        cost.month_price.as_deref().unwrap_or("?"),
    ]);
    cx.table(&table)?;
    let price = |price: &Option<String>| match (price, &cost.currency) {
        (Some(price), Some(currency)) => format!(", {price} {currency} a month"),
        (Some(price), None) => format!(", {price} a month"),
        (None, _) => String::new(),
    };
    cx.line(&format!(
        "in 30 days {}{}, if as much is stored again and nothing expires",
        human::size(cost.next_month_bytes),
        price(&cost.next_month_price)
    ))?;
    if let Some(put) = &cost.put_price {
        cx.line(&format!(
            "storing the objects of the last 30 days cost at least {put}{}",
            cost.currency
                .as_ref()
                .map_or_else(String::new, |c| format!(" {c}"))
        ))?;
    }
    Ok(())
}
