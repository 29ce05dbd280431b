"""The words of the test set: paths, agents, referers, users and tables that the training never shows.

record_logs.py drives nginx with the web part; build_requests.py fills its tables from the other part.
The training generator uses made-up words only (words.py), and tests/test_demo.py checks that the two
vocabularies do not meet.
"""

from __future__ import annotations

SECTIONS = (
    "account basket billing blog brochure calendar catalogue checkout coupons customers dashboard delivery "
    "downloads events exports feedback forum gallery glossary guides helpdesk imports inventory invoices journal "
    "kitchen library listings manuals museum newsletter notices offers orders partners passwords payments pictures "
    "podcasts policies preferences pricing profile projects publications purchases questions recipes refunds "
    "registry reports reviews schedule sessions settings shipping signup software stores subscriptions support "
    "tickets timetable tutorials uploads vacancies videos vouchers warranty weather webhooks wishlist workshops"
).split()
ITEMS = (
    "almond anchor apricot backpack bamboo barometer blanket bookshelf bracelet bucket candle cardigan ceramic "
    "charger chestnut compass corkscrew cushion doorbell earphones envelope eyeglasses feather fiddle flashlight "
    "garden-hose ginger-biscuit copper-lamp guitar hammock harness headphones honeycomb hourglass icebox jacket jigsaw "
    "kettle keyboard ladder lantern leather-pouch linen magnet mandolin marble mattress microscope mirror mittens "
    "notebook oak-table olive-oil orchid paintbrush parasol pendulum peppermint piano pillow pitcher pocketknife "
    "porcelain pumpkin quilt raincoat rocking-horse rucksack saddle sailboat sandals saucepan scarf scissors "
    "screwdriver shovel silver-brooch skateboard snowboard socks enamel-teapot stopwatch suitcase sunglasses sweater "
    "telescope thermometer toaster tripod trousers trumpet typewriter ukulele umbrella vacuum violin wallet "
    "walnut water-bottle wheelbarrow whistle windmill velvet-ribbon wrench xylophone yoghurt zipper"
).split()
PARAMETERS = (
    "author campaign category colour country currency cursor filter format language limit offset order page "
    "query rating region search section size source tag theme token utm_medium utm_source version view year"
).split()
VALUES = (
    "ascending autumn blue bronze cheapest compact cotton crimson descending emerald english express french "
    "german hardback indigo italian large latest medium monthly newest oldest orange paperback popular purple "
    "silver spanish spring standard summer turquoise violet weekly white wholesale winter yellow"
).split()
EXTENSIONS = "html php json xml css js png jpg svg pdf woff2 txt webp csv ico".split()
SITES = (
    "www.google.com duckduckgo.com www.bing.com news.example.org shop.example.com forum.example.net mail.example.com "
    "search.example.org intranet.example.net www.wikipedia.org github.com stackoverflow.com social.example.com"
).split()
USERS = "adam bridget carlos daphne edward fatima gustav hannah ingrid jonas katrin leopold miriam nadia oscar".split()

AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{major}.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{major}.0.{build}.{patch} "
    "Safari/537.36 Edg/{major}.0.{build}.{patch}",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{minor} "
    "Safari/605.1.15",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:{major}.0) Gecko/20100101 Firefox/{major}.0",
    "Mozilla/5.0 (Android 14; Mobile; rv:{major}.0) Gecko/{major}.0 Firefox/{major}.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{minor} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.{minor} Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0)",
    "Opera/9.80 (Windows NT 6.1; WOW64) Presto/2.12.388 Version/12.{minor}",
    "curl/8.{minor}.{patch}",
    "Wget/1.21.{minor}",
    "python-requests/2.{minor}.{patch}",
    "Python-urllib/3.{minor}",
    "Go-http-client/1.1",
    "okhttp/4.{minor}.{patch}",
    "PostmanRuntime/7.{major}.{minor}",
    "Java/17.0.{minor}",
    "Prometheus/2.{major}.{minor}",
    "kube-probe/1.{major}",
    "ELB-HealthChecker/2.0",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Lynx/2.9.{minor} libwww-FM/2.14 SSL-MM/1.4.1 OpenSSL/3.0.{patch}",
    "git/2.{major}.{minor} (linux)",
    "Debian APT-HTTP/1.3 (2.{minor}.{patch})",
)

FIRST_NAMES = (
    "Abigail Bartholomew Camilla Dominic Eleanor Ferdinand Gabriella Harriet Isabella Jonathan Katherine Leonardo "
    "Margaret Nathaniel Octavia Penelope Quentin Rosalind Sebastian Theodore Ursula Victoria Winifred Xavier Yolanda "
    "Zachary Beatrice Clarence Dorothy Frederick Genevieve Humphrey Josephine Lawrence Matilda Nicholas"
).split()
LAST_NAMES = (
    "Abernathy Blackwood Carpenter Dickinson Ellsworth Fairbanks Goldsmith Hawthorne Ironside Jefferson Kirkpatrick "
    "Lancaster Montgomery Nightingale Oakenfold Pemberton Quigley Robertson Sutherland Templeton Underhill "
    "Vandermeer Whitaker Yarborough Zimmerman Ashworth Bradshaw Crawford Davenport Fletcher Galloway Hathaway"
).split()
CITIES = (
    "Amsterdam Barcelona Copenhagen Dublin Edinburgh Florence Gothenburg Helsinki Istanbul Jerusalem Krakow Lisbon "
    "Madrid Naples Oslo Prague Reykjavik Salzburg Tallinn Utrecht Vienna Warsaw Zagreb Antwerp Budapest Cardiff"
).split()
PLANTS = (
    "aspen birch cedar cypress daffodil elderberry fennel foxglove hazelnut hawthorn hyacinth ivy jasmine juniper "
    "larch laurel lavender lilac magnolia maple mulberry nettle peony poplar primrose rosemary rowan sequoia "
    "snowdrop spruce sycamore thistle thyme tulip verbena wisteria yew"
).split()
COLOURS = (
    "amber beige burgundy cobalt coral ebony ivory khaki lemon maroon mustard ochre olive scarlet turquoise".split()
)
JOBS = (
    "accountant baker bookbinder butcher chemist dentist electrician farmer gardener glazier journalist lawyer "
    "librarian mechanic midwife nurse optician plumber potter sculptor secretary tailor teacher translator welder"
).split()
TABLES = "archive crew depot harbour herbarium members nursery payroll roster survey voyage".split()
PERSON_COLUMNS = "name person employee passenger tenant".split()
PLANT_COLUMNS = "species shrub conifer".split()
VALUE_COLUMNS = (
    ("city", CITIES),
    ("birthplace", CITIES),
    ("job", JOBS),
    ("colour", COLOURS),
    ("badge", COLOURS),
)
NUMBER_COLUMNS = "age height price quantity weight".split()
