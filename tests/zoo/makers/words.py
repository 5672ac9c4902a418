"""Word lists that the makers draw from."""

from __future__ import annotations

NAMES = (
    "Ada Ann Amir Anna Arne Aya Ben Bea Boris Carl Cara Chen Clara Dan Dana Diego Dora Ed Ella "
    "Emil Emma Erik Eva Fay Felix Finn Flora Gina Greg Hana Hans Hugo Ida Igor Ines Iris Ivan "
    "Jack Jana Jim Joan John Jude Kai Karl Kate Ken Kim Lara Lea Leo Lena Lily Lina Liam Luca "
    "Lucy Luis Mark Mary Maria Marta Max Maya Mia Mike Mila Nadia Nick Nina Noah Nora Olaf Olga "
    "Omar Oscar Otto Pam Paul Petra Peter Pia Rosa Ruth Ryan Sam Sara Sean Sofia Sven Tara Theo "
    "Tina Tom Uma Vera Viktor Wei Willa Yara Yuki Zoe Zara"
).split()

CITIES = (
    "Oslo Rome Paris Madrid Berlin Vienna Prague Dublin London Lisbon Athens Warsaw Zurich Geneva "
    "Milan Turin Parma Porto Lyon Nice Bonn Kiel Graz Bern Cairo Tokyo Osaka Kyoto Delhi Mumbai "
    "Boston Denver Dallas Austin Chicago Seattle Miami Lima Quito Bogota Sydney Perth Toronto"
).split()

COLOURS = "black white brown grey red green blue golden yellow orange purple pink".split()
PETS = "cat dog horse rabbit parrot hamster turtle goat pony duck goose mouse".split()
ITEMS = (
    "lamp chair table book pen cup plate fork spoon knife desk clock phone radio shirt hat coat "
    "shoe belt ring box bag basket candle mirror pillow blanket carpet ladder hammer bottle "
    "kettle towel"
).split()
FRUITS = (
    "apple pear plum fig grape lemon lime mango melon peach cherry kiwi banana orange olive "
    "papaya quince date guava apricot"
).split()
WORDS = (
    "able acid army baby back ball band bank base bath bear beat bell bird blue boat body bone "
    "book cake calm camp card care city clay club coal coat cold cook cool corn crew dark dawn "
    "deal deep desk dish door down draw drum dust east edge face fact farm film fire fish flag "
    "foot fork game gate gift girl gold hall hand harp hill hope horn idea iron jazz king kite "
    "lake lamp land leaf lion lock map mask milk mind moon nail nest news note oath ocean oil owl "
    "page park path pipe pond pool rain rice ring road rock roof room rose sail salt sand seed "
    "ship shoe silk snow song star tent time tree tube unit vase vote wall wave west wind wing "
    "wolf wood yard year zone"
).split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
