"""A tale's world: who lives there, what the places and things are called, and how a story opens and closes."""

from __future__ import annotations

from llamita.data.tales_grammar import Character, Place, Tale, Thing

GIRLS = (
    "Mila", "Nora", "Lily", "Ana", "Rosa", "Ella", "Maya", "Sofia", "Ivy", "Clara", "Zoe", "Lena",
    "June", "Ruth", "Eva", "Hana", "Lucy", "Alma", "Nina", "Sara", "Mei", "Elsa", "Kate", "Amina",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Leo", "Sam", "Max", "Finn", "Hugo", "Jack", "Noah", "Omar", "Theo", "Luca",
    "Emil", "Paco", "Toby", "Will", "Ravi", "Kofi", "Oscar", "Joe", "Adam", "Nico", "Felix", "Tim",
)  # fmt: skip
ANIMAL_GIRLS = (
    "Hazel", "Clover", "Willow", "Poppy", "Fern", "Daisy", "Pearl", "Maple", "Olive", "Tansy", "Dot", "Juniper",
)  # fmt: skip
ANIMAL_BOYS = (
    "Rusty", "Pip", "Bramble", "Bruno", "Dusty", "Twig", "Barley", "Chip", "Jasper", "Monty", "Basil", "Otto",
)  # fmt: skip

# Each animal lives where such an animal would.
ANIMALS = {
    "fox": "in a den under the roots of an oak",
    "rabbit": "in a burrow at the edge of the meadow",
    "mouse": "in a warm hole under the hedge",
    "squirrel": "in a hollow beech tree",
    "hedgehog": "in a nest of dry leaves",
    "bear": "in a cave on the hill",
    "otter": "in a hole in the river bank",
    "badger": "in a deep den behind the ferns",
    "mole": "in a tunnel under the meadow",
    "beaver": "in a house of sticks on the river",
    "hare": "in the long grass below the hill",
    "raccoon": "in an old tree by the stream",
}

VILLAGE_HOMES = (
    "in a small village by a river", "in a yellow house at the end of the road", "in a little town between two hills",
    "above the bakery", "in a brick house with a green door", "next to the old mill", "on a farm below the hill",
    "in a quiet village", "in a tall house with a crooked chimney",
)  # fmt: skip
SEASIDE_HOMES = (
    "in a white house near the sea", "in a fishing village", "on a small island", "beside the harbor",
    "in a blue cottage behind the dunes", "near the lighthouse",
)  # fmt: skip

VILLAGE_PLACES = (
    Place("the park", "in the park"), Place("the river", "by the river"), Place("the old mill", "by the old mill"),
    Place("the hill", "on the hill"), Place("the meadow", "in the meadow"), Place("the pond", "by the pond"),
    Place("the orchard", "in the orchard"), Place("the bridge", "under the bridge"),
    Place("the school yard", "in the school yard"), Place("the woods", "in the woods"),
    Place("the fountain", "beside the fountain"), Place("the stone wall", "behind the stone wall"),
)  # fmt: skip
SEASIDE_PLACES = (
    Place("the beach", "on the beach"), Place("the harbor", "in the harbor"), Place("the pier", "under the pier"),
    Place("the lighthouse", "by the lighthouse"), Place("the dunes", "in the dunes"), Place("the cove", "in the cove"),
    Place("the rock pools", "beside the rock pools"), Place("the cliff path", "on the cliff path"),
    Place("the old boat", "behind the old boat"), Place("the boat shed", "near the boat shed"),
)  # fmt: skip
FOREST_PLACES = (
    Place("the stream", "by the stream"), Place("the clearing", "in the clearing"), Place("the hill", "on the hill"),
    Place("the old oak", "under the old oak"), Place("the meadow", "in the meadow"), Place("the pond", "by the pond"),
    Place("the berry bushes", "near the berry bushes"), Place("the big rocks", "among the big rocks"),
    Place("the hollow log", "beside the hollow log"), Place("the waterfall", "below the waterfall"),
    Place("the pine trees", "under the pine trees"), Place("the wooden bridge", "under the wooden bridge"),
)  # fmt: skip

# name, pronouns, how they are introduced
VILLAGE_ELDERS = (
    ("Mrs. Bell", "she", "their neighbor Mrs. Bell"), ("Mr. Reed", "he", "Mr. Reed the baker"),
    ("Miss Park", "she", "Miss Park the teacher"), ("Mr. Stone", "he", "Mr. Stone the carpenter"),
    ("Aunt Lola", "she", "Aunt Lola"), ("Uncle Pete", "he", "Uncle Pete"), ("Mrs. Novak", "she", "old Mrs. Novak"),
    ("Mr. Brown", "he", "Mr. Brown the gardener"), ("Mr. Silva", "he", "Mr. Silva the postman"),
    ("Mrs. Gray", "she", "Mrs. Gray the shoemaker"),
)  # fmt: skip
SEASIDE_ELDERS = (
    ("Captain Rolf", "he", "old Captain Rolf"), ("Mrs. Shore", "she", "their neighbor Mrs. Shore"),
    ("Uncle Pete", "he", "Uncle Pete"), ("Mr. Finch", "he", "Mr. Finch the lighthouse keeper"),
    ("Aunt Lola", "she", "Aunt Lola"), ("Mrs. Gray", "she", "Mrs. Gray the net maker"),
)  # fmt: skip
FOREST_ELDERS = (
    ("Old Owl", "she", "wise Old Owl"), ("Old Toad", "he", "Old Toad"), ("Old Turtle", "he", "slow Old Turtle"),
    ("Old Goose", "she", "Old Goose"), ("Old Crow", "he", "clever Old Crow"), ("Old Badger", "she", "kind Old Badger"),
)  # fmt: skip

WEATHER = {
    "spring": ("bright", "mild", "fresh", "clear"),
    "summer": ("hot", "sunny", "golden", "lazy"),
    "autumn": ("windy", "cool", "misty", "golden"),
    "winter": ("cold", "frosty", "snowy", "white"),
}

# What children and animals hold dear. Traits decide how a thing can be lost:
# light: the wind takes it; small: it slips through a hole; shiny: a magpie takes it; round: it rolls away.
_DEAR_THINGS = (
    ("kite", "red striped paper yellow", "light"), ("scarf", "blue woolen striped warm", "light"),
    ("hat", "straw green red", "light"), ("ribbon", "yellow silk purple", "light small"),
    ("bell", "silver tiny golden", "shiny small"), ("key", "brass silver old", "shiny small"),
    ("whistle", "tin silver wooden", "shiny small"), ("marble", "green glass blue", "shiny small round"),
    ("button", "golden pearl brass", "shiny small round"), ("ball", "red orange spotted rubber", "round"),
    ("boat", "toy paper little", "light"), ("horse", "wooden painted little", ""),
    ("drum", "little red round", "round"),
    ("book", "picture old blue", ""), ("blanket", "soft gray patched", ""), ("flute", "wooden silver little", ""),
    ("feather", "blue white long", "light"), ("coin", "lucky silver old", "shiny small round"),
    ("ring", "glass copper silver", "shiny small round"), ("basket", "round little green", "round"),
)  # fmt: skip
DEAR_THINGS = tuple(
    Thing(noun, f"{adjective} {noun}", frozenset(traits.split()))
    for noun, adjectives, traits in _DEAR_THINGS
    for adjective in adjectives.split()
)
# Food that can be broken in two, and food that cannot.
WHOLE_FOODS = (
    "cheese sandwich", "honey cake", "apple pie", "loaf of warm bread", "oat cake", "slice of pumpkin pie", "pear tart",
    "corn cake", "raisin bun", "berry muffin", "cinnamon roll", "piece of plum cake", "walnut cookie", "carrot pie",
)  # fmt: skip
OTHER_FOODS = (
    "jar of plum jam", "bowl of berries", "bag of nuts", "pot of vegetable soup", "plate of pancakes", "bunch of"
    " grapes",
    "bag of cherries", "bowl of rice", "dish of dumplings", "basket of pears",
)  # fmt: skip
FOODS = WHOLE_FOODS + OTHER_FOODS

# What there is to see, hear and smell.
_SCENERY = {
    "spring": (
        "The first [flowers|bees|swallows] had come.", "The buds on the branches were [fat|sticky] and green.",
        "Everything smelled of [wet earth|rain and grass].", "A [cuckoo|robin|thrush] was calling somewhere.",
        "The last snow had melted, and the ditches were full of water.", "New leaves [shone|trembled] in the light.",
    ),
    "summer": (
        "The [bees|crickets|grasshoppers] were humming.", "The air smelled of [hay|mint|warm stone].",
        "Not one cloud was in the sky.", "Butterflies danced over the [clover|thistles|daisies].",
        "Even the [cat|lizard] was too lazy to move.", "The shadows were short and the sun was high.",
    ),
    "autumn": (
        "[Red|Yellow|Brown] leaves were falling.", "The geese were flying south in a long line.",
        "Mushrooms stood between the roots.", "The spiders had hung [silver|thin] threads from twig to twig.",
        "There was a smell of [smoke|apples|chestnuts] in the air.", "The hedges were full of [nuts|dark berries].",
    ),
    "winter": (
        "Snow lay [on everything|deep and soft].", "[Long icicles|Icicles] hung from the branches.",
        "One could see one's breath, like little clouds.", "Everything was white and very quiet.",
        "The pond was covered with ice.", "The snow [squeaked|crunched] under every step.",
    ),
}  # fmt: skip


def begin(tale: Tale, *, season: str | None = None, people: bool = False) -> None:
    """Choose who is in the tale, where and when; `people`: no animal heroes (the plot needs a village).

    Afterwards the tale knows: h hero, f friend, s a stranger, m parent, g grandparent, e an elder; home; place, place2
    and place3; season, time and day (`one cold winter morning`); world.
    """
    world = tale.pick(("village", "village", "seaside") if people else ("village", "forest", "forest", "seaside"))
    _choose_cast(tale, world)
    places = {"village": VILLAGE_PLACES, "seaside": SEASIDE_PLACES, "forest": FOREST_PLACES}[world]
    place, place2, place3 = tale.sample(places, 3)
    season = season or tale.pick(tuple(WEATHER))
    time = tale.pick(("morning", "afternoon"))
    weather = tale.pick(WEATHER[season])
    day = tale.pick((f"one {weather} {season} {time}", f"one {weather} {time}", f"one {time} in {season}", "one day"))
    tale.let(place=place, place2=place2, place3=place3, season=season, time=time, day=day, world=world)


def is_animal(tale: Tale) -> bool:
    """Whether the hero of the tale is an animal."""
    return tale.scope["world"] == "forest"


def _choose_cast(tale: Tale, world: str) -> None:
    genders = [tale.pick(("she", "he")) for _ in range(3)]
    if world == "forest":
        girls, boys = tale.sample(ANIMAL_GIRLS, 3), tale.sample(ANIMAL_BOYS, 3)
        kinds = tale.sample(tuple(ANIMALS), 3)
        home = ANIMALS[kinds[0]]
        size = tale.pick(("little", "small", "young"))
    else:
        girls, boys = tale.sample(GIRLS, 3), tale.sample(BOYS, 3)
        kinds = ["girl" if gender == "she" else "boy" for gender in genders]
        home = tale.pick(VILLAGE_HOMES if world == "village" else SEASIDE_HOMES)
        size = tale.pick(("little", "young", "small"))
    names = [girls[i] if gender == "she" else boys[i] for i, gender in enumerate(genders)]
    hero = Character(names[0], genders[0], kinds[0], f"a {size} {kinds[0]} named {names[0]}")
    known_as = f"{names[1]} the {kinds[1]}" if world == "forest" else names[1]
    friend = Character(names[1], genders[1], kinds[1], known_as, hero)
    stranger = Character(names[2], genders[2], kinds[2], f"a {kinds[2]} named {names[2]}")
    parent, grand, elder = _choose_elders(tale, world)
    tale.let(h=hero, f=friend, s=stranger, m=parent, g=grand, e=elder, home=home)


def _choose_elders(tale: Tale, world: str) -> tuple[Character, Character, Character]:
    mother, grandmother = tale.pick((("Mama", "Grandma"), ("Mother", "Grandmother"), ("Mom", "Grandma")))
    father, grandfather = {"Mama": ("Papa", "Grandpa"), "Mother": ("Father", "Grandfather"), "Mom": ("Dad", "Grandpa")}[
        mother
    ]
    elders = {"village": VILLAGE_ELDERS, "seaside": SEASIDE_ELDERS, "forest": FOREST_ELDERS}[world]
    name, gender, first = tale.pick(elders)
    parent = tale.pick(((mother, "she", "mother"), (father, "he", "father")))
    grand = tale.pick(((grandmother, "she", "grandmother"), (grandfather, "he", "grandfather")))
    return (
        Character(parent[0], parent[1], parent[2], parent[0]),
        Character(grand[0], grand[1], grand[2], grand[0]),
        Character(name, gender, "neighbor", first),
    )


def open_tale(tale: Tale, trait: str = "") -> None:
    """Introduce the hero and, where the plot needs one, a trait (an adjective: `shy`).

    Some tales begin with what happens instead: so a plot's first event says `{h.first}`, not `{h}`.
    """
    if tale.chance(0.15) and not trait:
        return
    tale.one_of(
        "Once upon a time, there was {h.a}. {h.He} lived {home}.",
        "Once upon a time, {h.a} lived {home}.",
        "Once there was {h.a} who lived {home}.",
        "{h.A} lived {home}.",
        "There was once {h.a}, and {h.his} home was {home}.",
        "{Home} lived {h.a}.",
        "Long ago, {h.a} lived {home} with {m} and {g}.",
        "{Home}, there lived {h.a}.",
        "This is the story of {h.a}, who lived {home}.",
        "Not so long ago, {home}, there lived {h.a}.",
        "Do you know {h}? {h.He} was a young {h.kind} who lived {home}.",
    )
    if " " in trait:
        tale.say(f"{{h.He}} was {trait}.")
    elif trait:
        tale.one_of(
            f"{{h.He}} was [very|rather|always a little] {trait}.",
            f"Everyone knew that {{h}} was {trait}.",
            f"{{h.He}} was {trait}, and everyone knew it.",
            f'"[How|So] {trait} you are!" {{m}} often said.',
        )


def scenery(tale: Tale, probability: float = 0.35) -> None:
    """Perhaps a look around, in the season of the tale."""
    season = tale.scope["season"]
    assert isinstance(season, str)
    tale.maybe(probability, *_SCENERY[season])


def close_tale(tale: Tale, *lessons: str) -> None:
    """A last sentence: one of the plot's own lessons, or one of the quiet endings that suit every plot."""
    if lessons and tale.chance(0.75):
        tale.one_of(*lessons)
        return
    tale.one_of(
        "That night, {h} fell asleep with a smile.",
        "When the moon came up, {h} was already fast asleep.",
        "{h} told {m} all about it at supper, and {m} listened to every word.",
        "It had been a very good day.",
        "They talked about it for a long, long time.",
        "And that is how the day ended well.",
        "Before going to bed, {h} looked at the stars and felt glad.",
        '"What a day!" said {h}, and {h.he} yawned.',
        "{m} tucked {h} in, and soon the woods were quiet."
        if is_animal(tale)
        else "{m} kissed {h} good night, and soon the house was quiet.",
    )
