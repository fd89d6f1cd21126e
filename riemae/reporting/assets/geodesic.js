// geodesic
