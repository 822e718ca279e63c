import boto3

from pipeline.oddkeys import names_in


def test_names_beside_keys_that_obstore_cannot_spell(s3):
    url, settings = s3
    client = boto3.client("s3", endpoint_url=settings.endpoint, region_name="us-east-1")
    for key in ("x/a//b", "x/a/c.jpg", "x/a/d/e.jpg", "x/a/\x01", "x/f.jpg"):
        client.put_object(Bucket=url.removeprefix("s3://"), Key=key, Body=b"1")
    assert names_in(f"{url}/x/a", settings) == (["d"], ["\x01", "c.jpg"])
    assert names_in(f"{url}/x/", settings) == (["a"], ["f.jpg"])
    assert names_in(f"{url}/nothing", settings) == ([], [])
