"""Points on the globe: distance, boxes and polygons as the filters mean them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

EARTH_RADIUS_M = 6_371_008.8  # the mean radius of the IUGG


@dataclass(frozen=True, slots=True)
class GeoPoint:
    lat: float
    lon: float


Ring = tuple[GeoPoint, ...]
"""A closed line: the last point is the first."""


def geo_point(value: Any) -> GeoPoint | None:
    """A payload's `{lat, lon}`; None if it is something else."""
    if not isinstance(value, dict):
        return None
    lat, lon = _coordinate(value.get("lat")), _coordinate(value.get("lon"))
    return None if lat is None or lon is None else GeoPoint(lat, lon)


def _coordinate(value: Any) -> float | None:
    if type(value) is float:
        return value
    # An integer beyond the floats is no coordinate, and float() of it would raise.
    return float(value) if type(value) is int and abs(value) < 1 << 64 else None


def distance_m(a: GeoPoint, b: GeoPoint) -> float:
    """Great-circle distance by the haversine formula."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half_lat = (lat_b - lat_a) / 2
    half_lon = math.radians(b.lon - a.lon) / 2
    h = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(max(0.0, h))))


def in_box(point: GeoPoint, top_left: GeoPoint, bottom_right: GeoPoint) -> bool:
    """Inside, edges excluded. A box whose left is right of its right crosses the antimeridian."""
    if not bottom_right.lat < point.lat < top_left.lat:
        return False
    if top_left.lon > bottom_right.lon:
        return point.lon > top_left.lon or point.lon < bottom_right.lon
    return top_left.lon < point.lon < bottom_right.lon


def in_polygon(point: GeoPoint, exterior: Ring, holes: tuple[Ring, ...]) -> bool:
    """Inside the exterior, its edge excluded, and in no hole; a hole's edge belongs to the hole."""
    if _side(point, exterior) <= 0:
        return False
    return all(_side(point, hole) < 0 for hole in holes)


def _side(point: GeoPoint, ring: Ring) -> int:
    """1 inside, 0 on the line, -1 outside: crossings of a ray, on the plane of degrees."""
    x, y = point.lon, point.lat
    inside = False
    for a, b in pairwise(ring):
        cross = (b.lon - a.lon) * (y - a.lat) - (b.lat - a.lat) * (x - a.lon)
        if (
            cross == 0
            and min(a.lon, b.lon) <= x <= max(a.lon, b.lon)
            and min(a.lat, b.lat) <= y <= max(a.lat, b.lat)
        ):
            return 0
        if (a.lat > y) != (b.lat > y) and (cross > 0) == (b.lat > a.lat):
            inside = not inside
    return 1 if inside else -1
