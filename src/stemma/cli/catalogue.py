"""Commands that say what there is: `info`, `pull`, `list`."""

from typing import Annotated, Any

import typer

from stemma.cli.app import Json, Model, app, print_table, put
from stemma.core import progress
from stemma.core.errors import UsageError, nearest


@app.command()
def info(
    model: Model,
    as_json: Json = False,
) -> None:
    """Say what a model is: parameters, bytes, context, template, licence."""
    from stemma import api
    from stemma.core import assets

    facts = api.info(model)
    known = assets.catalogue().get(model)
    if known is not None and known.terms:
        facts["terms"] = known.terms
    put(facts) if as_json else print_table(facts)


@app.command()
def pull(
    asset: Annotated[str, typer.Argument(help="A name from `stemma list assets`.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Agree to the terms that the asset has.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch an asset of the catalogue into the cache."""
    from stemma.core import assets

    found = assets.find(asset)
    if accept_licence and not found.terms:
        progress.LOG.warning("%s has no terms that must be agreed to", found.name)
    assets.agree(found, given=accept_licence)  # before a progress bar is in the way
    with progress.progress(f"pull {found.name}", found.bytes or 1) as update:
        folder = assets.pull(found.name, on_progress=update)
    facts = {
        "asset": found.name,
        "folder": str(folder),
        "licence": found.licence,
        **({"terms": found.terms} if found.terms else {}),
        "files": len([f for f in folder.rglob("*") if f.is_file()]),
    }
    put(facts) if as_json else print_table(facts)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="assets, families or recipes")],
    as_json: Json = False,
) -> None:
    """List assets, families or recipes."""
    kinds = {"assets": listed_assets, "families": listed_families, "recipes": listed_recipes}
    if what not in kinds:
        raise UsageError(f"cannot list {what}", place="stemma list", fix=nearest(what, kinds))
    rows = kinds[what]()
    if as_json:
        put(rows)
        return
    wide = max(len(name) for name in rows)
    for name, summary in rows.items():
        print(f"{name:<{wide}}  {summary}")


def listed_assets() -> dict[str, str]:
    from stemma.core import assets

    return {name: listed_asset(asset) for name, asset in sorted(assets.catalogue().items())}


def listed_asset(asset: Any) -> str:
    """What an asset is, how much is fetched, and its licence; terms that must be agreed to."""
    terms = f", to be agreed to: {asset.terms}" if asset.terms else ""
    return f"{asset.summary} ({asset.bytes / 1e6:.1f} MB, {asset.licence}{terms})"


def listed_families() -> dict[str, str]:
    from stemma import api

    presets = api.presets()
    return {
        family: "presets: " + ", ".join(n for n, f in presets.items() if f == family)
        for family in api.families()
    }


def listed_recipes() -> dict[str, str]:
    from stemma.pipeline import recipe

    return recipe.shipped()
